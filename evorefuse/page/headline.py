"""The report's first words: one sentence and the big numbers, harmless and unsafe requests always side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from evorefuse.page.cell import Cell, Kind
from evorefuse.page.tables import interval, number, p_value
from evorefuse.records import Metric

RULES = "evorefuse.mutator.rules.Rules"  # the mutator that the neutral one's remarks were made as long as
MAIN = {"seeds": "seeds", "neutral": "neutral arm", "evolved": "evolved"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Big:
    """One big number: the refusal rate of a set, and what its requests are."""

    name: str
    label: str
    metric: Metric
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """``sentence`` sums up; ``bigs`` stand below it, then ``comparisons``, each a claim with its interval and p."""

    sentence: str
    bigs: tuple[Big, ...]
    comparisons: tuple[str, ...]


def headline(cell: Cell, *, unsafe: Sequence[str]) -> Headline:
    """What the page opens with, from whatever the cell holds."""
    harmless = [name for name in MAIN if name in cell.sets and name not in unsafe]
    harmless = harmless or [name for name in cell.sets if name not in unsafe][:4]
    bigs = tuple(
        Big(name=name, label=MAIN.get(name, name.replace("_", " ")), kind=cell.kind(name, unsafe=unsafe),
            metric=cell.benchmark[f"{name}/refused"])
        for name in (*harmless, *unsafe[:2])
    )  # fmt: skip
    missing = " The control is missing: the neutral arm is empty." if cell.lacks_control else ""
    return Headline(sentence=_sentence(cell, bigs) + missing, bigs=bigs, comparisons=tuple(_comparisons(cell)))


def _sentence(cell: Cell, bigs: Sequence[Big]) -> str:
    harmless = [big for big in bigs if big.kind == "harmless"]
    known = {big.name: _percent(big.metric) for big in harmless if big.name != "neutral" or not cell.lacks_control}
    if not bigs:
        return _search_only(cell)
    if "evolved" in known:
        alike = " of the same length" if cell.node("generate", "mutator").get("_target_") == RULES else ""
        texts = {"seeds": "of the seeds they came from", "neutral": f"after neutral edits{alike}"}
        others = [f"{known[name]} {text}" for name, text in texts.items() if name in known]
        against = f", against {' and '.join(others)}" if others else ""
        first = (
            f"{cell.model} refuses {known['evolved']} of instructions that were evolved and judged harmless{against}."
        )
    elif harmless:
        rates = ", ".join(f"{_percent(big.metric)} of {big.label}" for big in harmless)
        first = f"{cell.model} refuses {rates}, which are harmless."
    else:
        first = f"{cell.model} was not asked anything harmless."
    rates = " and ".join(
        f"{_percent(big.metric)} ({big.label}{', some of them harmless' if big.kind == 'mixed' else ''})"
        for big in bigs
        if big.kind != "harmless"
    )
    last = f" Of unsafe requests it refuses {rates}." if rates else " No unsafe requests were put to it."
    return first + last


def _search_only(cell: Cell) -> str:
    metrics = cell.summaries["generate"].metrics if "generate" in cell.summaries else {}
    first, best = metrics.get("evolved/seed_fitness"), metrics.get("evolved/best_fitness")
    if first is None or best is None or first.value is None or best.value is None:
        return "Nothing has been measured on fresh samples yet, so no refusal rate is reported."
    unit = f" {cell.unit}" if cell.unit else ""
    return (
        f"The search raised the mean fitness from {number(first.value)} to {number(best.value)}{unit} in {best.n} "
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
            if metric.value is None:
                lines.append(f"{first} − {second}: not measured, for no seed has an answer on both sides")
                continue
            p = cell.benchmark.get(f"{key}_p")
            points = f"{number(metric.value, kind='rate', signed=True)} points"
            bounds = interval(metric, kind="rate", signed=True)
            lines.append(
                f"{first} − {second}: {points} {bounds}, {p_value(p.value if p else None)}, "
                f"paired by seed, n = {metric.n}"
            )
    return lines
