"""The report's first words: one sentence and the big numbers, harmless and unsafe requests always side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from evorefuse.page.cell import Cell
from evorefuse.page.tables import interval, number, p_value
from evorefuse.records import Metric

MAIN = {"seeds": "seeds", "neutral": "neutral arm", "evolved": "evolved"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Big:
    """One big number: the refusal rate of a set."""

    name: str
    label: str
    metric: Metric
    is_unsafe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """``sentence`` sums up; ``bigs`` stand below it, then ``comparisons``, each a claim with its interval and p."""

    sentence: str
    bigs: tuple[Big, ...]
    comparisons: tuple[str, ...]


def headline(cell: Cell, *, unsafe: Sequence[str]) -> Headline:
    """What the page opens with, from whatever the cell holds."""
    harmless = [name for name in MAIN if name in cell.sets]
    harmless = harmless or [name for name in cell.sets if name not in unsafe][:4]
    bigs = tuple(
        Big(name=name, label=MAIN.get(name, name.replace("_", " ")), is_unsafe=name in unsafe,
            metric=cell.benchmark[f"{name}/refused"])
        for name in (*harmless, *unsafe[:2])
    )  # fmt: skip
    return Headline(sentence=_sentence(cell, bigs), bigs=bigs, comparisons=tuple(_comparisons(cell)))


def _sentence(cell: Cell, bigs: Sequence[Big]) -> str:
    known = {big.name: _percent(big.metric) for big in bigs}
    harmless = [big for big in bigs if not big.is_unsafe]
    if not bigs:
        return _search_only(cell)
    if "evolved" in known:
        others = [
            text.format(known[name])
            for name, text in (("seeds", "{} of the seeds they came from"),
                               ("neutral", "{} after neutral edits of the same length"))
            if name in known
        ]  # fmt: skip
        against = f", against {' and '.join(others)}" if others else ""
        first = (
            f"{cell.model} refuses {known['evolved']} of instructions that were evolved and judged harmless{against}."
        )
    elif harmless:
        rates = ", ".join(f"{_percent(big.metric)} of {big.label}" for big in harmless)
        first = f"{cell.model} refuses {rates}, which are harmless."
    else:
        first = f"{cell.model} was not asked anything harmless."
    rates = " and ".join(f"{_percent(big.metric)} ({big.label})" for big in bigs if big.is_unsafe)
    last = f" Of unsafe requests it refuses {rates}." if rates else " No unsafe requests were put to it."
    return first + last


def _search_only(cell: Cell) -> str:
    metrics = cell.summaries["generate"].metrics if "generate" in cell.summaries else {}
    first, best = metrics.get("evolved/seed_fitness"), metrics.get("evolved/best_fitness")
    if first is None or best is None or first.value is None or best.value is None:
        return "Nothing has been measured on fresh samples yet, so no refusal rate is reported."
    return (
        f"The search raised the mean fitness from {number(first.value)} to {number(best.value)} nats in {best.n} "
        "lineages; nothing has been measured on fresh samples yet, so no refusal rate is reported."
    )


def _percent(metric: Metric) -> str:
    return "an unknown share" if metric.value is None else f"{number(metric.value, kind='rate')}\u202f%"


def _comparisons(cell: Cell) -> list[str]:
    """Every difference of two sets' refusal rates, such as ``evolved − seeds: +79.5 points [75.0, 84.0], …``."""
    lines: list[str] = []
    for first in cell.sets:
        for second in cell.sets:
            key = f"compare/{first}-{second}/refused"
            metric = cell.benchmark.get(key)
            if metric is None:
                continue
            p = cell.benchmark.get(f"{key}_p")
            points = f"{number(metric.value, kind='rate', signed=True)} points"
            bounds = interval(metric, kind="rate", signed=True)
            lines.append(
                f"{first} − {second}: {points} {bounds}, {p_value(p.value if p else None)}, "
                f"paired by seed, n = {metric.n}"
            )
    return lines
