"""Report: one self-contained page of all that a run folder holds, with its tables and figures.

Writes `report.html`, `tables/*.{md,tex,csv}` and `figures/*.{svg,png}`. Rebuilt from the files every time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table as RichTable

from evorefuse.page import findings, tables
from evorefuse.page.cell import Cell, read_cell
from evorefuse.page.figures import draw_all, for_page, to_png, to_svg
from evorefuse.page.headline import headline
from evorefuse.page.lineage import explore
from evorefuse.page.mine import cluster_table, draw_clusters, read_clusters
from evorefuse.page.render import Content, render
from evorefuse.ports import Tracker
from evorefuse.progress import Progress
from evorefuse.records import Metric, Summary
from evorefuse.store import Store

DERIVED = True
_FIGURE_TITLES = {
    "fitness": "Mean fitness over the iterations, by arm",
    "refusal": "Refusal rate on fresh samples over the iterations, by arm",
    "rates": "Refusal rate of each set with its interval",
    "gains": "Mean gain in fitness by strategy",
    "strategies": "Fresh refusal rate of winners by strategy",
    "mined": "Descriptions of instructions, in clusters",
    "validity": "Fitness against the fresh refusal rate of each measured candidate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is shown.

    ``inputs`` is the run folder. ``expected`` holds bounds written before the run, ``<stage>/<metric>: [low, high]``
    (None: open). ``unsafe`` names sets of unsafe requests; the first of each AUC pair is one anyway. At most
    ``max_lineages`` an arm and ``max_samples`` answers a step are shown. ``cards`` replaces the shipped judge cards.
    """

    inputs: str
    title: str = "Report"
    expected: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict[str, findings.Bounds])
    unsafe: tuple[str, ...] = ("controls", "held_out_unsafe", "xstest_unsafe", "advbench")
    max_lineages: int = 200
    max_samples: int = 3
    cards: str | None = None


def run(*, cfg: Settings, store: Store, tracker: Tracker, progress: Progress) -> Summary:
    """Build the page from whatever stages have left, and print the closing table.

    Returns:
        `spearman` of F against the fresh refusal rate, that rate by arm and iteration (`<arm>/t<t>/refused`), and
        `checks` with the share of expected bounds that hold.

    Raises:
        FileNotFoundError: where there is nothing to report.
    """
    cell = read_cell(Path(cfg.inputs), cards=Path(cfg.cards) if cfg.cards else None)
    unsafe = cell.unsafe_sets(cfg.unsafe)
    points, found, valid = findings.curves(cell), findings.strategies(cell), findings.validity(cell)
    metrics = findings.own_metrics(points, valid)
    checks = findings.check(findings.all_metrics(cell, metrics), cfg.expected)
    mined = read_clusters(Path(cfg.inputs))
    figures = draw_all(cell, points=points, found=found, valid=valid, unsafe=unsafe)
    figures |= {"mined": draw_clusters(mined)} if mined else {}
    built = {
        table.name: table
        for table in (
            tables.rates_table(cell, unsafe=unsafe), tables.strategy_table(found, unit=cell.unit),
            tables.curve_table(points, unit=cell.unit), tables.check_table(checks),
            cluster_table(mined), tables.cost_table(cell),
        )
        if table is not None
    }  # fmt: skip
    content = Content(
        title=cfg.title, cell=cell, unsafe=unsafe, headline=headline(cell, unsafe=unsafe), checks=checks,
        figures=_write_figures(figures, store, progress), tables=built, strategies=found, validity=valid,
        lineages={name: explore(cell, arm, limit=cfg.max_lineages, samples=cfg.max_samples)
                  for name, arm in cell.arms.items() if arm.lineages},
        n_lineages={name: len(arm.lineages) for name, arm in cell.arms.items()},
        others={stage: tables.metric_table(stage, summary.metrics) for stage, summary in cell.summaries.items()},
    )  # fmt: skip
    _write_tables(built, store, tracker)
    page = store.write_text("report.html", render(content))
    tracker.artifact("report", "report", [str(page)])
    if cell.sets:
        progress.console.print(console_table(cell, unsafe=unsafe))
    progress.console.print(f"report: {page}", highlight=False, markup=False, soft_wrap=True)
    holding = [check.state == "holds" for check in checks if check.state != "not measured"]
    share = Metric(value=sum(holding) / len(holding) if holding else None, n=len(holding),
                   n_unscored=len(checks) - len(holding))  # fmt: skip
    return Summary(stage="report", metrics=metrics | ({"checks": share} if checks else {}))


def _write_figures(figures: Mapping[str, Figure], store: Store, progress: Progress) -> dict[str, str]:
    """Write each figure as SVG and PNG; the SVGs as the page shows them, by name."""
    shown: dict[str, str] = {}
    with progress.task("report", total=len(figures)) as task:
        for name, figure in figures.items():
            svg = to_svg(figure, name=name)
            store.write_text(f"figures/{name}.svg", svg)
            store.write_bytes(f"figures/{name}.png", to_png(figure))
            shown[name] = for_page(svg, title=_FIGURE_TITLES[name])
            task.advance(1, note=name)
    return shown


def _write_tables(built: Mapping[str, tables.Table], store: Store, tracker: Tracker) -> None:
    for name, table in built.items():
        store.write_text(f"tables/{name}.md", tables.to_markdown(table))
        store.write_text(f"tables/{name}.tex", tables.to_tex(table))
        store.write_text(f"tables/{name}.csv", tables.to_csv(table))
        rows = [[tables.cell_text(value, column) for value, column in zip(row, table.columns, strict=True)]
                for row in table.rows]  # fmt: skip
        tracker.table(f"report/{name}", [column.label for column in table.columns], rows)


def console_table(cell: Cell, *, unsafe: tuple[str, ...] | list[str]) -> RichTable:
    """The closing table for the terminal: each set's refusal rate with its interval, PRR and n, in per cent."""
    table = RichTable(title=f"{cell.model}: answers that refuse (%), 95 % intervals", title_justify="left")
    table.add_column("set")
    table.add_column("requests")
    for label in ("refused", "PRR", "n", "unscored"):
        table.add_column(label, justify="right")
    for name in sorted(cell.sets, key=lambda name: name in unsafe):
        refused, prr = cell.benchmark[f"{name}/refused"], cell.benchmark.get(f"{name}/prr")
        table.add_row(
            name.replace("[", r"\["),
            cell.kind(name, unsafe=unsafe),
            f"{tables.number(refused.value, kind='rate')} {tables.interval(refused, kind='rate')}".replace("[", r"\["),
            tables.number(prr.value if prr else None, kind="rate"),
            str(refused.n),
            str(refused.n_unscored),
        )
    return table
