"""Mined strategies for people: the clusters as records, as a picture and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from evorefuse.page.figures import INK, STYLE, WIDTH
from evorefuse.page.tables import Column, Table
from evorefuse.store import decode, read_jsonl

# Told apart on light and on dark; clusters beyond these are grey.
COLOURS = ("#c2410d", "#1b7f8c", "#6d4aa8", "#4b6a9b", "#b8860b", "#3f8f4f", "#c0508a", "#8a6d3b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An instruction with what a model said of it.

    ``x`` and ``y`` place it in the plane of the two main directions; ``similarity`` is the cosine to the medoid.
    """

    id: str
    instruction: str
    source: str
    tactic: str
    mechanism: str
    x: float
    y: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Instructions that were described alike.

    ``name`` is that of its strategy, None where it is too small to be one; ``tactic`` and ``mechanism`` are those of
    the member nearest to all others, the ``medoid``; ``cohesion`` is the mean cosine of its pairs (None of one alone).
    """

    number: int
    name: str | None
    size: int
    tactic: str
    mechanism: str
    medoid: str
    cohesion: float | None
    members: tuple[Member, ...]


def read_clusters(folder: Path) -> list[Cluster]:
    """The clusters that stage `mine` left in a run folder; none where it has not run."""
    path = folder / "mine" / "clusters.jsonl"
    return decode(list[Cluster], list(read_jsonl(path))) if path.is_file() else []


def draw_clusters(clusters: Sequence[Cluster]) -> Figure:
    """Every described instruction as a dot, the largest clusters in colour and numbered; the rest is grey."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        axes = figure.subplots()
        for rank, cluster in reversed(list(enumerate(clusters))):
            is_shown = rank < len(COLOURS) and cluster.name is not None
            ink = COLOURS[rank] if is_shown else INK["muted"]
            x, y = [member.x for member in cluster.members], [member.y for member in cluster.members]
            axes.scatter(x, y, s=18 if is_shown else 9, color=ink, alpha=0.7 if is_shown else 0.35, linewidths=0)
            if is_shown:
                middle = (sum(x) / len(x), sum(y) / len(y))
                axes.annotate(str(cluster.number), middle, color=ink, fontweight="bold", ha="center", va="center",
                              xytext=(0, 12), textcoords="offset points",
                              bbox={"boxstyle": "circle,pad=0.15", "fc": "none", "ec": ink, "lw": 0.8})  # fmt: skip
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel("the two main directions of the descriptions' embeddings")
        axes.grid(visible=False)
        return figure


def cluster_table(clusters: Sequence[Cluster]) -> Table | None:
    """The clusters that became strategies, largest first; None without any."""
    columns = (
        Column(key="number", label="no.", kind="count"), Column(key="tactic", label="tactic"),
        Column(key="mechanism", label="why it may be refused"), Column(key="size", label="instructions", kind="count"),
        Column(key="cohesion", label="cohesion", kind="number"), Column(key="example", label="such as"),
    )  # fmt: skip
    rows = tuple(
        (
            c.number,
            c.tactic,
            c.mechanism,
            c.size,
            c.cohesion,
            next(member.instruction for member in c.members if member.id == c.medoid),
        )
        for c in clusters
        if c.name is not None
    )
    caption = (
        "A model's descriptions of instructions, clustered by the cosine of their embeddings. Tactic, mechanism and "
        "example are those of the member nearest to all others; cohesion is the mean cosine of the cluster's pairs."
    )
    return Table(name="mined", caption=caption, columns=columns, rows=rows) if rows else None
