"""The report's tables, each once as data and then as Markdown, TeX and CSV; and how figures are written for people."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evorefuse.page.cell import Cell
from evorefuse.page.findings import Check, Point, Strategy
from evorefuse.records import Metric

Kind = Literal["text", "rate", "number", "count"]
Value = Metric | str | int | float | None

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
_MARKDOWN = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "|": "\\|", "*": "\\*", "_": "\\_", "`": "\\`", "[": "\\["}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: a ``rate`` is shown in per cent, a ``number`` with two decimals."""

    key: str
    label: str
    kind: Kind = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; ``rows`` hold one value a column, a Metric where there is an interval. ``name`` is its file's."""

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]


def number(value: float | None, *, kind: Kind = "number", signed: bool = False) -> str:
    """``value`` for people: a rate in per cent, at most one decimal; an em dash for None; no 0.0000."""
    if value is None or value != value:
        return "—"
    plus = "+" if signed and value > 0 else ""
    if kind == "count":
        return f"{plus}{value:,.0f}".replace("-", "−")
    if kind == "rate":
        percent = value * 100
        return f"{plus}{percent:.{0 if abs(percent) >= 99.95 or percent == 0 else 1}f}".replace("-", "−")
    if 0 < abs(value) < 0.00005:
        return "<\u00a00.0001" if value > 0 else ">\u00a0−0.0001"
    large = abs(value) >= 100 or float(value).is_integer()
    return f"{plus}{value:,.{0 if large else 2 if abs(value) >= 0.01 else 4}f}".replace("-", "−")


def interval(metric: Metric, *, kind: Kind = "number", signed: bool = False) -> str:
    """``[low, high]`` of a metric for people, or nothing where it has no interval."""
    if metric.value is None or metric.low is None or metric.high is None or metric.low != metric.low:
        return ""
    return f"[{number(metric.low, kind=kind, signed=signed)}, {number(metric.high, kind=kind, signed=signed)}]"


def p_value(p: float | None) -> str:
    """A p-value for people, such as ``p < 0.001`` or ``p = 0.012``, in one piece."""
    if p is None:
        return "p not measured"
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def cell_text(value: Value, column: Column) -> str:
    """One cell as plain text; a Metric comes with its interval."""
    if isinstance(value, Metric):
        return f"{number(value.value, kind=column.kind)} {interval(value, kind=column.kind)}".rstrip()
    if value is None or isinstance(value, str):
        return "—" if value is None else value
    return number(value, kind=column.kind)


def to_csv(table: Table) -> str:
    """The table as CSV with figures in full; a Metric takes five columns: value, low, high, n, n_unscored."""
    parts = ("", "_low", "_high", "_n", "_n_unscored")
    wide = [any(isinstance(row[i], Metric) for row in table.rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [c.key + part for c, w in zip(table.columns, wide, strict=True) for part in (parts if w else ("",))]
    )
    for row in table.rows:
        cells: list[Value] = []
        for value, is_wide in zip(row, wide, strict=True):
            if isinstance(value, Metric):
                cells += [value.value, value.low, value.high, value.n, value.n_unscored]
            else:
                cells += [value, *[None] * 4] if is_wide else [value]
        writer.writerow(cells)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown; texts are escaped."""
    lines = [
        _row([column.label + (" (%)" if column.kind == "rate" else "") for column in table.columns]),
        _row(["---" if column.kind == "text" else "---:" for column in table.columns]),
        *(_row([_escape(cell_text(v, c), _MARKDOWN) for v, c in zip(row, table.columns, strict=True)])
          for row in table.rows),
    ]  # fmt: skip
    return "\n".join([*lines, "", table.caption, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def to_tex(table: Table) -> str:
    """The table as a LaTeX tabular (booktabs); texts are escaped."""
    labels = [column.label + (" (%)" if column.kind == "rate" else "") for column in table.columns]
    body = [[cell_text(v, c) for v, c in zip(row, table.columns, strict=True)] for row in table.rows]
    lines = [" & ".join(_escape(text, _TEX).replace("−", "$-$").replace("—", "---") for text in row) + r" \\"
             for row in (labels, *body)]  # fmt: skip
    align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    caption = "% " + " ".join(table.caption.split())
    return "\n".join(
        [caption, rf"\begin{{tabular}}{{{align}}}", r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule",
         r"\end{tabular}", ""]
    )  # fmt: skip


def _escape(text: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(character, character) for character in re.sub(r"\s+", " ", text))


def rates_table(cell: Cell, *, unsafe: Sequence[str]) -> Table | None:
    """Every rate of every set of the benchmark, harmless sets first; None without a benchmark."""
    metrics = cell.benchmark
    if not cell.sets:
        return None
    rows: list[tuple[Value, ...]] = []
    for name in sorted(cell.sets, key=lambda name: name in unsafe):
        own = {key: metrics.get(f"{name}/{key}") for key in ("refused", "full", "prr", "other", "p_refusal")}
        refused = metrics[f"{name}/refused"]
        rows.append((name, cell.kind(name, unsafe=unsafe), *own.values(), refused.n, refused.n_unscored))
    columns = (
        Column(key="set", label="set"), Column(key="kind", label="requests"),
        Column(key="refused", label="full + partial", kind="rate"), Column(key="full", label="full", kind="rate"),
        Column(key="prr", label="PRR", kind="rate"), Column(key="other", label="other", kind="rate"),
        Column(key="p_refusal", label="mean p(refusal)", kind="rate"), Column(key="n", label="n", kind="count"),
        Column(key="n_unscored", label="unscored", kind="count"),
    )  # fmt: skip
    caption = (
        "Rates over fresh answers with 95 % intervals (Wilson at the effective sample size, so repeats of one prompt "
        "do not count as independent prompts). PRR: answers with a standard refusal prefix. Other: empty, cut off or "
        "garbled. Unscored answers are left out of every rate."
    )
    return Table(name="rates", caption=caption, columns=columns, rows=tuple(rows))


def strategy_table(found: Sequence[Strategy], *, unit: str) -> Table | None:
    """The strategies as a table, F in ``unit`` (empty: none); None where there are none."""
    columns = (
        Column(key="arm", label="arm"), Column(key="strategy", label="strategy"),
        Column(key="proposals", label="scored", kind="count"), Column(key="accepted", label="accepted", kind="count"),
        Column(key="gain", label="ΔF over parent", kind="number"), Column(key="winners", label="winners", kind="count"),
        Column(key="refused", label="refused", kind="rate"), Column(key="n_unscored", label="unscored", kind="count"),
    )  # fmt: skip
    rows = tuple(
        (s.arm, words(s.name), s.proposals, s.accepted, s.gain, s.winners, s.refused, s.refused.n_unscored)
        for s in found
    )
    in_unit = f", in {unit}" if unit else ""
    caption = (
        "Scored: candidates judged harmless and scored. Accepted: those that became their lineage's current. ΔF: mean "
        f"of F minus the fitter parent's{in_unit}. Refused: fresh refusal rate of the winners whose trail holds "
        "the strategy; a trail holds several, so these rates overlap."
    )
    return Table(name="strategies", caption=caption, columns=columns, rows=rows) if rows else None


def curve_table(points: Sequence[Point], *, unit: str) -> Table | None:
    """The curves as a table, F in ``unit`` (empty: none); None where there are none."""
    columns = (
        Column(key="arm", label="arm"), Column(key="iteration", label="iteration", kind="count"),
        Column(key="fitness", label="mean F", kind="number"), Column(key="refused", label="refused", kind="rate"),
        Column(key="n_lineages", label="lineages", kind="count"),
        Column(key="n_measured", label="measured", kind="count"),
        Column(key="n_unscored", label="unscored", kind="count"),
    )  # fmt: skip
    rows = tuple(
        (p.arm, p.t + 1, p.fitness, p.refused, p.n_lineages, p.n_measured, p.refused.n_unscored) for p in points
    )
    caption = (
        f"The best instruction of each lineage after each iteration (0: its seed). F{f' in {unit}' if unit else ''}, "
        "as the search saw it, with a 95 % bootstrap interval over lineages; refused: on fresh answers, over the "
        "lineages whose instruction was measured, with a 95 % Wilson interval at the effective sample size."
    )
    return Table(name="curves", caption=caption, columns=columns, rows=rows) if rows else None


def metric_table(name: str, metrics: Mapping[str, Metric], *, caption: str = "") -> Table:
    """Any stage's metrics as a table."""
    columns = (
        Column(key="metric", label="metric"), Column(key="value", label="value [95 %]", kind="number"),
        Column(key="n", label="n", kind="count"), Column(key="n_unscored", label="unscored", kind="count"),
    )  # fmt: skip
    rows = tuple((key, metric, metric.n, metric.n_unscored) for key, metric in metrics.items())
    return Table(name=name, caption=caption, columns=columns, rows=rows)


def cost_table(cell: Cell) -> Table | None:
    """What served models were asked, by stage and model; None where none was."""
    columns = (
        Column(key="stage", label="stage"), Column(key="model", label="model"),
        Column(key="requests", label="requests", kind="count"), Column(key="read", label="tokens read", kind="count"),
        Column(key="written", label="written", kind="count"), Column(key="usd", label="US dollars", kind="number"),
        Column(key="cached_requests", label="from cache", kind="count"),
        Column(key="cached_usd", label="saved dollars", kind="number"),
        Column(key="errors", label="errors", kind="count"), Column(key="faults", label="faults on the way"),
    )  # fmt: skip
    rows = tuple(
        (e.stage, e.model, e.requests, e.read, e.written, e.usd, e.cached_requests, e.cached_usd, e.errors,
         ", ".join(f"{n} × {cause}" for cause, n in sorted(e.faults.items())))
        for e in cell.spent
    )  # fmt: skip
    caption = (
        "Paid requests and those answered from the cache apart; the latter cost nothing, and the dollars they would "
        "have cost are what was saved. Faults on the way were retried; errors are requests that failed in the end."
    )
    return Table(name="cost", caption=caption, columns=columns, rows=rows) if rows else None


def check_table(checks: Sequence[Check]) -> Table | None:
    """The bounds written down before the run, and whether they hold; None without any."""
    columns = (
        Column(key="metric", label="metric"), Column(key="low", label="at least", kind="number"),
        Column(key="high", label="at most", kind="number"), Column(key="value", label="value", kind="number"),
        Column(key="state", label="state"),
    )  # fmt: skip
    rows = tuple((c.name, c.low, c.high, c.metric, c.state) for c in checks)
    return Table(name="checks", caption="", columns=columns, rows=rows) if rows else None


def words(name: str) -> str:
    """A name in words: ``violent_words`` becomes ``violent words``."""
    return name.replace("_", " ")
