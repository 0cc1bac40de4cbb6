"""The report's figures: drawn once by matplotlib, as SVG that follows the page's theme and as files for a paper."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evorefuse.page.cell import Cell
from evorefuse.page.findings import Point, Strategy, Validity
from evorefuse.page.tables import words
from evorefuse.records import Metric

# Colours of the light theme; in the page each becomes the CSS variable of that name, so dark mode follows.
INK = {"ink": "#1d1f23", "muted": "#6b7078", "line": "#dcdad5", "seeds": "#8a8478", "evolved": "#c2410d",
       "neutral": "#1b7f8c", "unsafe": "#6d4aa8", "other": "#4b6a9b"}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "text.parse_math": False, "svg.fonttype": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK["line"], "axes.linewidth": 0.8,
    "axes.labelcolor": INK["muted"], "text.color": INK["ink"], "xtick.color": INK["line"], "ytick.color": INK["line"],
    "xtick.labelcolor": INK["muted"], "ytick.labelcolor": INK["muted"], "xtick.major.size": 3, "ytick.major.size": 0,
    "axes.grid": True, "grid.color": INK["line"], "grid.linewidth": 0.6, "axes.axisbelow": True,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip
WIDTH = 4.7  # inches: 338 pt, so that 8.5 pt stays legible on a page 420 px wide


def colour(name: str, unsafe: Sequence[str] = ()) -> str:
    """The colour of an arm or a set."""
    return INK["unsafe"] if name in unsafe else INK.get(name.removesuffix("_path"), INK["other"])


def draw_all(
    cell: Cell, *, points: Sequence[Point], found: Sequence[Strategy], valid: Validity, unsafe: Sequence[str]
) -> dict[str, Figure]:
    """Every figure that this cell has data for, by file name."""
    drawers: dict[str, tuple[bool, Callable[[], Figure]]] = {
        "fitness": (bool(points), lambda: draw_curve(points, "fitness")),
        "refusal": (any(p.refused.value is not None for p in points), lambda: draw_curve(points, "refused")),
        "rates": (bool(cell.sets), lambda: draw_rates(cell, unsafe)),
        "gains": (any(s.gain.value is not None for s in found), lambda: draw_gains(found, unit=cell.unit)),
        "strategies": (any(s.refused.value is not None for s in found), lambda: draw_strategies(cell, found)),
        "validity": (bool(valid.points), lambda: draw_validity(valid, unit=cell.unit)),
    }
    with mpl.rc_context(STYLE):
        return {name: draw() for name, (has_data, draw) in drawers.items() if has_data}


def draw_curve(points: Sequence[Point], key: str) -> Figure:
    """Mean F (``fitness``) or the fresh refusal rate (``refused``) over the iterations, one line an arm."""
    figure, axes = _canvas(2.75)
    ends: list[tuple[float, str]] = []
    for arm in dict.fromkeys(point.arm for point in points):
        own = [(p.t + 1, m) for p in points if p.arm == arm and (m := _metric(p, key)).value is not None]
        if not own:
            continue
        x, y = [t for t, _ in own], [_scale(m.value, key) for _, m in own]
        low = [_scale(m.low, key) for _, m in own]
        high = [_scale(m.high, key) for _, m in own]
        axes.fill_between(x, low, high, color=colour(arm), alpha=0.14, linewidth=0)
        axes.plot(x, y, color=colour(arm), marker="o", markersize=3.5, linewidth=1.6)
        ends.append((y[-1], arm))
    _label_ends(axes, ends, x=max(p.t for p in points) + 1)
    axes.set_xticks(sorted({p.t + 1 for p in points}))
    axes.set_xlabel("iteration (0: the seeds)")
    if key == "refused":
        axes.set_ylim(-2, 102)
        axes.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    axes.grid(visible=False, axis="x")
    return figure


def _metric(point: Point, key: str) -> Metric:
    return point.refused if key == "refused" else point.fitness


def _scale(value: float | None, key: str) -> float:
    number = float("nan") if value is None else value
    return number * 100 if key == "refused" else number


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str]], *, x: float) -> None:
    """Name each line at its end; names that would overlap are moved apart."""
    low, high = axes.get_ylim()
    apart = (high - low) * 0.08
    placed: list[float] = []
    for y, arm in sorted(ends):
        height = max([y, *(other + apart for other in placed)])
        placed.append(height)
        axes.annotate(
            arm,
            (x, height),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour(arm),
            annotation_clip=False,
        )


def draw_rates(cell: Cell, unsafe: Sequence[str]) -> Figure:
    """A dot and an interval for each set, harmless sets above unsafe ones."""
    names = sorted(cell.sets, key=lambda name: name in unsafe)
    rows = [(name, cell.benchmark[f"{name}/refused"], colour(name, unsafe)) for name in names]
    return _dots(rows, percent=True, label="answers that refuse, full or partial")


def draw_strategies(cell: Cell, found: Sequence[Strategy]) -> Figure:
    """The fresh refusal rate by strategy of the first arm; a dashed line marks all winners of the control arm."""
    arm = found[0].arm
    rows = [(words(s.name), s.refused, colour(arm)) for s in found if s.arm == arm and s.refused.value is not None]
    figure = _dots(rows, percent=True, label="fresh refusal rate of winners with it")
    if "neutral" in cell.arms and arm != "neutral":
        control = cell.fresh_rate([own[-1].instruction for own in cell.arms["neutral"].lineages])
        _mark(figure.axes[0], control, "neutral arm")
    return figure


def draw_gains(found: Sequence[Strategy], *, unit: str) -> Figure:
    """Mean gain in F by strategy of the first arm, in the order of the other strategy figure."""
    arm = found[0].arm
    rows = [(words(s.name), s.gain, colour(arm)) for s in found if s.arm == arm and s.gain.value is not None]
    figure = _dots(rows, percent=False, label=_in("mean ΔF over the fitter parent", unit))
    figure.axes[0].axvline(0, color=INK["muted"], linewidth=0.8)
    return figure


def _mark(axes: Axes, metric: Metric, label: str) -> None:
    if metric.value is not None:
        axes.axvline(metric.value * 100, color=INK["neutral"], linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            label, (metric.value * 100, 1), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", color=INK["neutral"], annotation_clip=False,
        )  # fmt: skip


def _dots(rows: Sequence[tuple[str, Metric, str]], *, percent: bool, label: str) -> Figure:
    figure, axes = _canvas(0.75 + 0.235 * len(rows))
    unit = 100 if percent else 1
    for y, (_, metric, ink) in enumerate(rows):
        if metric.value is None:
            axes.annotate("not measured", (0, y), xytext=(4, 0), textcoords="offset points", va="center",
                          color=INK["muted"])  # fmt: skip
            continue
        if metric.low is not None and metric.high is not None:
            axes.plot([metric.low * unit, metric.high * unit], [y, y], color=ink, linewidth=3.2, alpha=0.3,
                      solid_capstyle="round")  # fmt: skip
        axes.plot([metric.value * unit], [y], marker="o", markersize=5, color=ink)
    axes.set_yticks(range(len(rows)), [name if len(name) < 30 else name[:28] + "…" for name, *_ in rows])
    axes.tick_params(axis="y", labelcolor=INK["ink"])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    if percent:
        axes.set_xlim(-2, 102)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    axes.set_xlabel(label)
    return figure


def draw_validity(valid: Validity, *, unit: str) -> Figure:
    """Every measured candidate: F as the search saw it against its refusal rate on fresh answers."""
    figure, axes = _canvas(3.1)
    for arm in dict.fromkeys(arm for arm, *_ in valid.points):
        own = [(f, rate * 100) for name, f, rate in valid.points if name == arm]
        axes.scatter([f for f, _ in own], [r for _, r in own], s=14, color=colour(arm), alpha=0.45, linewidths=0,
                     label=arm)  # fmt: skip
    axes.set_yticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    axes.set_xlabel(_in("F, as the search saw it", unit))
    axes.set_ylim(-4, 104)
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, handletextpad=0.1, columnspacing=1.2,
        borderaxespad=0,
    )  # fmt: skip
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        if handle is not None:
            handle.set_alpha(1)
        text.set_color(colour(text.get_text()))
    return figure


def _in(label: str, unit: str) -> str:
    return f"{label} ({unit})" if unit else label


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def to_svg(figure: Figure, *, name: str) -> str:
    """The figure as a whole SVG file, the same bytes for the same data."""
    return _save(figure, "svg", salt=name, metadata={"Date": None, "Creator": None}).decode("utf-8")


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, 220 dots an inch."""
    return _save(figure, "png", dpi=220, facecolor="white")


def _save(figure: Figure, kind: str, *, salt: str = "", **options: Any) -> bytes:
    out = io.BytesIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": salt or kind}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name with emoji: the page's fonts have it
        figure.savefig(out, format=kind, **options)
    return out.getvalue()


def for_page(svg: str, *, title: str) -> str:
    """The SVG for the page: no prologue, no fixed size, colours as CSS variables, the page's own font, a title."""
    body = svg[svg.index("<svg") :]
    for name, value in INK.items():
        body = body.replace(value, f"var(--{name})")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"(<svg[^>]*?)\swidth=\"[^\"]*\"", r"\1", body, count=1)
    body = re.sub(r"(<svg[^>]*?)\sheight=\"[^\"]*\"", r"\1", body, count=1)
    body = re.sub(r"<g id=\"[^\"]*\"", "<g", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    safe = "".join({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}.get(char, char) for char in title)
    return body.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)
