"""What a cell shows: curves over the iterations, strategies, fitness validity, bounds. Pure functions of a Cell."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evorefuse import stats
from evorefuse.page.cell import Arm, Cell
from evorefuse.records import Candidate, Metric

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One iteration of one arm: mean F of the best so far and the refusal rate on fresh samples of them.

    ``n_lineages`` counts all, ``n_measured`` those whose instruction the benchmark put to the target.
    """

    arm: str
    t: int
    fitness: Metric
    refused: Metric
    n_lineages: int
    n_measured: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How one strategy did in one arm.

    ``proposals`` counts its scored candidates, ``accepted`` how often one became its lineage's current; ``gain`` is
    the mean of F minus the fitter parent's; ``refused`` the fresh refusal rate of the ``winners`` whose trail
    holds it.
    """

    arm: str
    name: str
    proposals: int
    accepted: int
    gain: Metric
    winners: int
    refused: Metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """F against the fresh refusal rate: (arm or `seeds`, F, rate) a measured candidate; Spearman's rho."""

    points: tuple[tuple[str, float, float], ...]
    spearman: Metric
    n_candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Whether a metric lies within the bounds that were written down before the run."""

    name: str
    metric: Metric | None
    low: float | None
    high: float | None
    state: Literal["holds", "fails", "not measured"]


def curves(cell: Cell) -> list[Point]:
    """One point for each arm and iteration, t = -1 (the seeds) first, with their intervals."""
    return [_point(cell, arm, t) for arm in cell.arms.values() for t in sorted({t for t, _ in arm.path})]


def _point(cell: Cell, arm: Arm, t: int) -> Point:
    best = [candidate for step, candidate in arm.path if step == t]
    values = [c.fitness.value for c in best]
    return Point(
        arm=arm.name,
        t=t,
        fitness=stats.mean([[v] for v in values if v is not None], n_unscored=values.count(None)),
        refused=cell.fresh_rate([c.instruction for c in best]),
        n_lineages=len(best),
        n_measured=sum(bool(cell.fresh(c.instruction)) for c in best),
    )


def strategies(cell: Cell) -> list[Strategy]:
    """Every strategy of every arm: arms in order, within an arm the highest fresh refusal rate first."""
    found = [_strategy(cell, arm, name) for arm in cell.arms.values() for name in _names(arm)]
    order = list(cell.arms)
    return sorted(found, key=lambda s: (order.index(s.arm), -(-1 if s.refused.value is None else s.refused.value)))


def _names(arm: Arm) -> list[str]:
    return list(dict.fromkeys(c.instruction.strategy for c in arm.proposed if c.instruction.trail))


def _strategy(cell: Cell, arm: Arm, name: str) -> Strategy:
    gains: dict[str, list[float]] = {}
    proposals = accepted = unscored = 0
    for chunk in arm.chunks:
        known = {c.instruction.id: c for step in chunk for c in (*step.current, *step.proposed)}
        for before, step in itertools.pairwise(chunk):
            moves = zip(before.current, step.current, strict=True)
            accepted += sum(new.instruction.id != old.instruction.id and _by(new, name) for old, new in moves)
            for candidate in (c for c in step.proposed if _by(c, name)):
                proposals += 1
                gain = _gain(candidate, known)
                unscored += gain is None
                if gain is not None:
                    gains.setdefault(candidate.instruction.seed_id, []).append(gain)
    winners = [own[-1].instruction for own in arm.lineages]
    with_it = [x for x in winners if any(op.partition("/")[0] == name for op in x.trail)]
    return Strategy(
        arm=arm.name, name=name, proposals=proposals, accepted=accepted, winners=len(with_it),
        gain=stats.mean(list(gains.values()), n_unscored=unscored), refused=cell.fresh_rate(with_it),
    )  # fmt: skip


def _by(candidate: Candidate, strategy: str) -> bool:
    return bool(candidate.instruction.trail) and candidate.instruction.strategy == strategy


def _gain(candidate: Candidate, known: Mapping[str, Candidate]) -> float | None:
    parents = [known[key].fitness.value for key in candidate.instruction.parents if key in known]
    measured = [value for value in parents if value is not None]
    if candidate.fitness.value is None or not measured:
        return None
    return candidate.fitness.value - max(measured)


def validity(cell: Cell) -> Validity:
    """F of every distinct candidate that was also measured on fresh samples, against that fresh refusal rate."""
    candidates = {c.instruction.id: (arm.name, c) for arm in cell.arms.values() for c in arm.proposed}
    points: list[tuple[str, float, float]] = []
    for arm, candidate in candidates.values():
        outcomes = [o for o in cell.fresh(candidate.instruction) if o is not None]
        if outcomes and candidate.fitness.value is not None:
            points.append(
                (
                    arm if candidate.instruction.trail else "seeds",
                    candidate.fitness.value,
                    sum(outcomes) / len(outcomes),
                )
            )
    rho = stats.spearman([f for _, f, _ in points], [rate for *_, rate in points])
    return Validity(points=tuple(points), spearman=rho, n_candidates=len(candidates))


def check(metrics: Mapping[str, Metric], expected: Mapping[str, Bounds]) -> list[Check]:
    """Each bound of ``expected`` held against ``metrics`` (named ``<stage>/<metric>``); a None bound is open."""
    return [_check(name, metrics.get(name), low, high) for name, (low, high) in expected.items()]


def _check(name: str, metric: Metric | None, low: float | None, high: float | None) -> Check:
    state: Literal["holds", "fails", "not measured"] = "not measured"
    if metric is not None and metric.value is not None:
        inside = (low is None or metric.value >= low) and (high is None or metric.value <= high)
        state = "holds" if inside else "fails"
    return Check(name=name, metric=metric, low=low, high=high, state=state)


def all_metrics(cell: Cell, own: Mapping[str, Metric]) -> dict[str, Metric]:
    """Every metric of the cell as ``<stage>/<metric>``, with the report's ``own``."""
    stages = {f"{stage}/{name}": m for stage, summary in cell.summaries.items() for name, m in summary.metrics.items()}
    return stages | {f"report/{name}": metric for name, metric in own.items()}


def own_metrics(points: Sequence[Point], found: Validity) -> dict[str, Metric]:
    """What the report adds: `spearman`, and by arm and iteration the fresh refusal rate `<arm>/t<t>/refused`."""
    rates = {f"{p.arm}/t{p.t}/refused": p.refused for p in points if p.refused.value is not None}
    return {"spearman": found.spearman, **rates} if found.points else rates
