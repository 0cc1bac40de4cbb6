"""Mine: what makes harmless instructions be refused, found as the paper found its strategies (EVOREFUSE §3.1).

Mutually dissimilar instructions → a model names tactic and mechanism of each → embeddings → clusters. Writes
`journal.jsonl` (one batch of answers a line), `clusters.jsonl`, `strategies.jsonl` (for `mutator.mined=<path>`),
`failed.jsonl` and `clusters.{svg,png}`.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import AgglomerativeClustering

from evorefuse import stats
from evorefuse.page.figures import to_png, to_svg
from evorefuse.page.mine import Cluster, Member, draw_clusters
from evorefuse.ports import LM, Embedder, Source, Tracker
from evorefuse.progress import Progress
from evorefuse.prompts import Template, inert, mark_for, read
from evorefuse.records import Instruction, Message, Metric, Summary, derive, stream
from evorefuse.store import ConflictError, Journal, Store, decode
from evorefuse.structured import Answer, Prompt, Text, ask

Vectors = NDArray[np.float32]
_LONGEST = 40  # characters of a strategy's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How many are described, and when two descriptions are one strategy.

    ``size`` instructions are taken from all sources (0: all). Clusters are cut where the cosine falls below
    ``similarity``, by ``linkage``; those with at least ``least`` members become strategies. ``batch`` prompts are asked
    at a time (the unit of resuming), each answered within ``max_tokens`` new tokens.
    """

    size: int = 100
    similarity: float = 0.45
    linkage: Literal["average", "complete"] = "average"
    least: int = 2
    batch: int = 32
    temperature: float = 0.0
    max_tokens: int = 200

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing.

        Raises:
            ValueError: naming what was expected.
        """
        if not 0 < self.similarity < 1 or self.size < 0 or self.least < 1 or self.batch < 1:
            raise ValueError(f"expected 0 < similarity < 1, size >= 0, least >= 1 and batch >= 1, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a model says of an instruction: the device in its wording, and why that may lead to a refusal."""

    tactic: Text
    mechanism: Text


def run(
    *,
    cfg: Settings,
    seed: int,
    sources: Mapping[str, Source],
    writer: LM,
    embedder: Embedder,
    store: Store,
    tracker: Tracker,
    progress: Progress,
) -> Summary:
    """Choose, have described, cluster, write; resumes where it stopped.

    Returns:
        `pool`, `chosen`, `named` (unscored: the model gave no usable description), `clusters`, `strategies`,
        `clustered` (share of the described that are in a strategy), `nearest` (mean cosine of a chosen instruction to
        the most similar other) and `cohesion` (mean cosine within a strategy).

    Raises:
        ConflictError: where the journal was begun with other instructions or another prompt.
        ValueError: where the sources hold nothing.
    """
    pool = list({x.id: x for source in sources.values() for x in source.load()}.values())
    if not pool:
        raise ValueError("mine.sources hold no instruction")
    vectors = embedder.embed([x.text for x in pool])
    picks = farthest(vectors, size=cfg.size, start=stream(seed, "mine").randrange(len(pool)))
    chosen = [pool[index] for index in picks]
    answers = _describe(chosen, cfg=cfg, seed=seed, writer=writer, journal=store.journal("journal.jsonl"),
                        progress=progress)  # fmt: skip
    named = [(x, answer.value) for x, answer in zip(chosen, answers, strict=True) if answer.value is not None]
    points = embedder.embed([f"{found.tactic}: {found.mechanism}" for _, found in named])
    clusters = gather(named, points, cfg=cfg)
    failed = [{"id": x.id, "instruction": x.text, "error": answer.error}
              for x, answer in zip(chosen, answers, strict=True) if answer.value is None]  # fmt: skip
    rows = _write(clusters, failed, store=store)
    tracker.table("mine/strategies", ["name", "tactic", "mechanism", "size"], [tuple(row.values()) for row in rows])
    metrics = {
        "pool": Metric(value=len(pool), n=len(pool)),
        "chosen": Metric(value=len(chosen), n=len(pool)),
        "named": Metric(value=len(named), n=len(named), n_unscored=len(failed)),
        "nearest": stats.mean([[cosine] for cosine in nearest(vectors[picks])]),
        **_figures(clusters),
    }
    notes = [f"{len(failed)} of {len(chosen)} instructions have no usable description"] if failed else []
    return Summary(stage="mine", metrics=metrics, notes=(*notes, f"prompt sha256 {read('mine').sha256[:16]}"))


def _write(clusters: Sequence[Cluster], failed: Sequence[Mapping[str, Any]], *, store: Store) -> list[dict[str, Any]]:
    """Write what was found; the lines of strategies.jsonl."""
    strategies = [c for c in clusters if c.name is not None]
    rows = [{"name": c.name, "tactic": c.tactic, "mechanism": c.mechanism, "size": c.size} for c in strategies]
    store.write_jsonl("clusters.jsonl", clusters)
    store.write_jsonl("strategies.jsonl", rows)
    store.write_jsonl("failed.jsonl", failed)
    if clusters:
        figure = draw_clusters(clusters)
        store.write_text("clusters.svg", to_svg(figure, name="clusters"))
        store.write_bytes("clusters.png", to_png(figure))
    return rows


def _figures(clusters: Sequence[Cluster]) -> dict[str, Metric]:
    n = sum(c.size for c in clusters)
    strategies = [c for c in clusters if c.name is not None]
    return {
        "clusters": Metric(value=len(clusters) if n else None, n=n),
        "strategies": Metric(value=len(strategies) if n else None, n=n),
        "clustered": stats.rate([c.name is not None for c in clusters for _ in c.members]),
        "cohesion": stats.mean([[c.cohesion] for c in strategies if c.cohesion is not None]),
    }


def farthest(vectors: Vectors, *, size: int, start: int) -> list[int]:
    """Indices of ``size`` rows of ``vectors`` [N, D], each the one least like all before it; all where size is 0.

    Greedy: twice the best possible spread at worst (Gonzalez 1985). Ties go to the first.
    """
    chosen = [start]
    closest = vectors @ vectors[start]
    while len(chosen) < min(size or len(vectors), len(vectors)):
        closest[chosen[-1]] = np.inf
        chosen.append(int(closest.argmin()))
        closest = np.maximum(closest, vectors @ vectors[chosen[-1]])
    return chosen


def nearest(vectors: Vectors) -> list[float]:
    """The cosine of each row of ``vectors`` [N, D] to the most similar other; none where there is no other."""
    if len(vectors) < 2:
        return []
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    return [float(cosine) for cosine in cosines.max(axis=1)]


def _describe(
    chosen: Sequence[Instruction], *, cfg: Settings, seed: int, writer: LM, journal: Journal, progress: Progress
) -> list[Answer[Finding]]:
    """One answer an instruction, from the journal as far as it goes, then from the model."""
    template = read("mine")
    answers: list[Answer[Finding]] = []
    for row in journal.rows:
        if row["template"] != template.sha256 or row["ids"] != _ids(chosen[len(answers) :][: cfg.batch]):
            raise ConflictError(
                "this mine was begun with other instructions or another prompt: something has changed since. "
                "Give this run another name=…, or delete the folder."
            )
        answers += decode(list[Answer[Finding]], row["answers"])
    with progress.task("mine", total=len(chosen)) as task:
        task.advance(len(answers))
        for start in range(len(answers), len(chosen), cfg.batch):
            batch = chosen[start : start + cfg.batch]
            prompts = [_prompt(template, x, seed=seed) for x in batch]
            fresh = ask(writer, prompts, kind=Finding, temperature=cfg.temperature, max_tokens=cfg.max_tokens)
            journal.append({"template": template.sha256, "ids": _ids(batch), "answers": fresh})
            answers += fresh
            task.advance(len(batch))
    return answers


def _ids(instructions: Sequence[Instruction]) -> list[str]:
    return [instruction.id for instruction in instructions]


def _prompt(template: Template, instruction: Instruction, *, seed: int) -> Prompt:
    text = inert(instruction.text)
    words = template.fill(instruction=text, mark=mark_for(text))
    return Prompt(messages=(Message(role="user", content=words),), seed=derive(seed, "mine", instruction.id))


def gather(named: Sequence[tuple[Instruction, Finding]], points: Vectors, *, cfg: Settings) -> list[Cluster]:
    """The described instructions in clusters, largest first; ``points`` [N, D] are the descriptions' unit vectors."""
    labels = cluster(points, similarity=cfg.similarity, linkage=cfg.linkage)
    places = plane(points)
    found: list[Cluster] = []
    for label in dict.fromkeys(labels):
        own = [index for index, other in enumerate(labels) if other == label]
        cosines = points[own] @ points[own].T
        medoid = int(cosines.sum(axis=1).argmax())
        members = tuple(
            Member(id=x.id, instruction=x.text, source=x.source, tactic=finding.tactic, mechanism=finding.mechanism,
                   x=float(places[index, 0]), y=float(places[index, 1]), similarity=round(float(cosine), 4))
            for index, cosine in zip(own, cosines[medoid], strict=True)
            for x, finding in [named[index]]
        )  # fmt: skip
        pairs = cosines[np.triu_indices(len(own), k=1)]
        central = members[medoid]
        found.append(
            Cluster(number=0, name=None, size=len(own), tactic=central.tactic, mechanism=central.mechanism,
                    medoid=central.id, cohesion=round(float(pairs.mean()), 4) if len(own) > 1 else None,
                    members=members)
        )  # fmt: skip
    return _named(sorted(found, key=lambda c: -c.size), least=cfg.least)


def cluster(points: Vectors, *, similarity: float, linkage: Literal["average", "complete"]) -> list[int]:
    """A label for each row of ``points`` [N, D]: merged while the cosine of two groups is at least ``similarity``."""
    if len(points) < 2:
        return [0] * len(points)
    cut: dict[str, Any] = {"n_clusters": None, "distance_threshold": 1 - similarity}
    model = AgglomerativeClustering(metric="cosine", linkage=linkage, **cut)
    return [int(label) for label in model.fit_predict(points.astype(np.float64))]


def plane(points: Vectors) -> NDArray[np.float64]:
    """Places [N, 2] in the plane of the two main directions of ``points`` [N, D] (PCA), of one sign by convention."""
    if len(points) < 2:
        return np.zeros((len(points), 2))
    centred = points.astype(np.float64) - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    main = np.zeros((2, points.shape[1]))
    main[: min(2, len(directions))] = directions[:2]
    signs = np.sign(main[np.arange(2), np.abs(main).argmax(axis=1)])
    return np.round(centred @ (main * signs[:, None]).T, 4)


def _named(clusters: Sequence[Cluster], *, least: int) -> list[Cluster]:
    """The clusters with their numbers, from 1, and, where they are large enough, names of their own."""
    taken: set[str] = set()
    found: list[Cluster] = []
    for number, one in enumerate(clusters, start=1):
        name = None
        if one.size >= least:
            name = slug(one.tactic) or f"mined_{number}"
            while name in taken:
                name = f"{name}_{number}"
            taken.add(name)
        found.append(replace(one, number=number, name=name))
    return found


def slug(tactic: str) -> str:
    """A strategy's name from its tactic: ``mined_`` and its Latin letters and digits; empty where it has none."""
    ascii_text = unicodedata.normalize("NFKD", tactic).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "_", ascii_text).strip("_")[:_LONGEST].rstrip("_")
    return f"mined_{words}" if words else ""
