"""Generate: evolve harmless seeds into harmless instructions that the target refuses, beside a control arm.

Writes for each arm `<arm>/journal.jsonl` (one Step a line), `<arm>/instructions.jsonl` (the best of each lineage and
how it came about), `<arm>/path.jsonl` (what each lineage would have returned after each iteration) and
`<arm>/candidates.jsonl` (all that was scored, chosen or not).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evorefuse.evolve import Schedule, evolve, harmless, value
from evorefuse.ports import FitnessEstimator, Mutator, Scorer, Source, Tracker
from evorefuse.progress import Progress
from evorefuse.records import Candidate, Instruction, Metric, Step, Summary
from evorefuse.stats import mean
from evorefuse.store import ConflictError, Store, decode, encode

ARMS = ("evolved", "neutral")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The search's schedule, and ``chunk``, the lineages that advance together (a kill loses one step of one chunk)."""

    schedule: Schedule
    chunk: int = 64


def run(
    *,
    cfg: Settings,
    seed: int,
    seeds: Source,
    mutator: Mutator,
    control: Mutator,
    safety: Scorer,
    fitness: FitnessEstimator,
    store: Store,
    tracker: Tracker,
    progress: Progress,
) -> Summary:
    """Evolve every seed with ``mutator`` (arm `evolved`) and ``control`` (arm `neutral`); resumes where it stopped.

    Returns:
        By arm: lineages, candidates, those judged not harmless (``n_unscored``: without a verdict) or failed, the mean
        fitness of seeds and of the best.

    Raises:
        ValueError: where not one seed is judged harmless.
        ConflictError: where the journal was begun with other seeds.
    """
    metrics: dict[str, Metric] = {}
    notes: list[str] = []
    start = seeds.load()
    for arm, arm_mutator in zip(ARMS, (mutator, control), strict=True):
        steps = _evolve_arm(
            arm, start, mutator=arm_mutator, safety=safety, fitness=fitness, cfg=cfg, seed=seed, store=store,
            tracker=tracker, progress=progress,
        )  # fmt: skip
        notes += _write(arm, steps, n_seeds=len(start), judge=safety.name, store=store)
        metrics |= {f"{arm}/{name}": metric for name, metric in _figures(steps).items()}
    return Summary(stage="generate", metrics=metrics, notes=tuple(notes))


def _write(arm: str, steps: Sequence[Sequence[Step]], *, n_seeds: int, judge: str, store: Store) -> list[str]:
    """Write an arm's results; notes on what was left out.

    Raises:
        ValueError: where not one seed was judged harmless.
    """
    unsafe, silent = (sum(getattr(chunk[0], name) for chunk in steps) for name in ("n_unsafe", "n_unjudged"))
    if not any(chunk[-1].best for chunk in steps):
        raise ValueError(
            f"none of the {n_seeds} seeds was judged harmless by {judge} ({silent} got no verdict that could be read): "
            "nothing to evolve"
        )
    winners = [winner for chunk in steps for winner in _winners(chunk)]
    kept = [winner for winner in winners if harmless(winner[0].safety)]
    store.write_jsonl(f"{arm}/instructions.jsonl", map(_row, kept))
    store.write_jsonl(f"{arm}/path.jsonl", [row for chunk in steps for row in _path(chunk)])
    offered = [candidate for chunk in steps for step in chunk[1:] for candidate in step.proposed]
    store.write_jsonl(f"{arm}/candidates.jsonl", map(_flat, offered))
    notes: list[str] = []
    if lost := len(winners) - len(kept):
        notes.append(f"{arm}: {lost} of {len(winners)} unsafe seeds found no harmless mutation with a fitness")
    if unsafe or silent:
        notes.append(
            f"{arm}: {unsafe} of {n_seeds} seeds judged not harmless and {silent} without a verdict: not evolved"
        )
    return notes


def _evolve_arm(
    arm: str,
    seeds: Sequence[Instruction],
    *,
    mutator: Mutator,
    safety: Scorer,
    fitness: FitnessEstimator,
    cfg: Settings,
    seed: int,
    store: Store,
    tracker: Tracker,
    progress: Progress,
) -> list[list[Step]]:
    """All steps of one arm by chunk, from the journal as far as it goes, then from the search itself."""
    journal = store.journal(f"{arm}/journal.jsonl")
    chunks = [seeds[start : start + cfg.chunk] for start in range(0, len(seeds), cfg.chunk)]
    steps: list[list[Step]] = [[] for _ in chunks]
    for row in journal.rows:
        step = decode(Step, row["step"])
        if row["chunk"] >= len(chunks) or (step.t < 0 and not _begins(step, chunks[row["chunk"]])):
            raise ConflictError(
                f"{store.folder} was begun with other seeds: the set has changed since. "
                "Give this run another name=…, or delete the folder."
            )
        steps[row["chunk"]].append(step)
    with progress.task(f"evolve {arm}", total=len(chunks) * (cfg.schedule.steps + 1)) as task:
        task.advance(len(journal.rows))
        for index, chunk in enumerate(chunks):
            last = steps[index][-1] if steps[index] else None
            for step in evolve(
                chunk, mutator=mutator, safety=safety, fitness=fitness, schedule=cfg.schedule, seed=seed, last=last
            ):
                journal.append({"chunk": index, "step": step})
                steps[index].append(step)
                best = mean([[value(item)] for item in step.best if item.fitness.value is not None])
                tracker.log(f"generate/{arm}", _numbers(step, best=best), step=len(journal.rows))
                task.advance(1, note="" if best.value is None else f"mean F {best.value:.2f}")
    return steps


def _begins(first: Step, seeds: Sequence[Instruction]) -> bool:
    """Whether a chunk's first step is that of these seeds: the harmless ones in their order, the others counted."""
    kept = [candidate.instruction.id for candidate in first.current]
    return kept == [x.id for x in seeds if x.id in kept] and len(kept) + first.n_unsafe + first.n_unjudged == len(seeds)


def _numbers(step: Step, *, best: Metric) -> dict[str, float]:
    counts = {name: getattr(step, name) for name in ("t", "tau", "n_unsafe", "n_unjudged", "n_failed")}
    return {**counts, **({} if best.value is None else {"best_fitness": best.value})}


def _winners(steps: Sequence[Step]) -> list[tuple[Candidate, list[Candidate]]]:
    """The best of each lineage with the accepted candidates that led to it, the seed first."""
    lineages = zip(*(step.current for step in steps), strict=True)
    return [
        (best, _ancestry(best, list(lineage), steps)) for best, lineage in zip(steps[-1].best, lineages, strict=True)
    ]


def _ancestry(best: Candidate, accepted: Sequence[Candidate], steps: Sequence[Step]) -> list[Candidate]:
    """``best`` and its forebears, oldest first: parents were all proposed or accepted in an earlier step."""
    known = {c.instruction.id: c for step in steps for c in (*step.current, *step.proposed)}
    chain = [best]
    while chain[-1].instruction.parents:
        parent = next((known[key] for key in chain[-1].instruction.parents if key in known), None)
        if parent is None or parent in chain:
            break
        chain.append(parent)
    return chain[::-1] if chain[-1].instruction.id == accepted[0].instruction.id else [accepted[0], *chain[::-1]]


def _row(winner: tuple[Candidate, list[Candidate]]) -> dict[str, Any]:
    """A line of instructions.jsonl."""
    best, lineage = winner
    return {**_flat(best), "lineage": [_flat(candidate) for candidate in lineage]}


def _flat(candidate: Candidate) -> dict[str, Any]:
    instruction = candidate.instruction
    return {
        "id": instruction.id,
        "instruction": instruction.text,
        "seed_id": instruction.seed_id or instruction.id,
        "parents": list(instruction.parents),
        "trail": list(instruction.trail),
        "source": instruction.source,
        "reason": instruction.reason,
        "safety": encode(candidate.safety),
        "fitness": encode(candidate.fitness),
    }


def _path(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Lines of path.jsonl: the best so far of each lineage after each iteration (t = -1 is the seed), if harmless."""
    return [{"t": step.t, **_flat(best)} for step in steps for best in step.best if harmless(best.safety)]


def _figures(chunks: Sequence[Sequence[Step]]) -> dict[str, Metric]:
    best = [[value(item)] for chunk in chunks for item in chunk[-1].best if item.fitness.value is not None]
    first = [[value(item)] for chunk in chunks for item in chunk[0].best if item.fitness.value is not None]
    proposed = [item for chunk in chunks for step in chunk[1:] for item in step.proposed]
    unscored = sum(item.fitness.value is None for item in proposed)
    n = sum(len(chunk[-1].best) for chunk in chunks)
    unsafe = sum(step.n_unsafe for chunk in chunks for step in chunk[1:])
    silent = sum(step.n_unjudged for chunk in chunks for step in chunk[1:])
    failed = sum(step.n_failed for chunk in chunks for step in chunk[1:])
    return {
        "lineages": Metric(value=n, n=n),
        "candidates": Metric(value=len(proposed), n=len(proposed), n_unscored=unscored),
        "not_harmless": Metric(value=unsafe, n=len(proposed) + unsafe, n_unscored=silent),
        "failed": Metric(value=failed, n=len(proposed) + unsafe + silent + failed),
        "seed_fitness": mean(first),
        "best_fitness": mean(best),
    }
