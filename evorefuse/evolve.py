"""The search (EVOREFUSE §3.3, algorithm 1): a pure generator. No files, no clock, no global randomness.

All lineages of a chunk advance together, so each port sees one big batch an iteration.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evorefuse.ports import FitnessEstimator, Mutator, Scorer
from evorefuse.records import Candidate, Exchange, Instruction, Proposal, Step, Verdict, derive, stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The search's numbers; the paper's values are the defaults (EVOREFUSE §4.1).

    ``elite`` is L, the mutants that may be recombined (0: no recombination), and ``children`` N, the pairs drawn from
    them. Annealing: τ_t = max(tau_final, tau_start - tau_decay·t); all three 0 is greedy.
    """

    steps: int = 5
    elite: int = 4
    children: int = 2
    tau_start: float = 0.1
    tau_decay: float = 0.005
    tau_final: float = 0.05

    def tau(self, t: int) -> float:
        """The annealing temperature of iteration ``t`` (nats)."""
        return max(self.tau_final, self.tau_start - self.tau_decay * t)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screened:
    lineages: list[list[Candidate]]
    n_unsafe: int
    n_failed: int


def evolve(
    seeds: Sequence[Instruction],
    *,
    mutator: Mutator,
    safety: Scorer,
    fitness: FitnessEstimator,
    schedule: Schedule,
    seed: int,
    last: Step | None = None,
) -> Iterator[Step]:
    """Yield one Step an iteration, the seeds first (t = -1); ``last`` resumes after that step.

    A seed that is not judged harmless has no lineage: it is counted in ``n_unsafe`` of the first step.
    """

    def screen(offers: Sequence[Sequence[Proposal]], known: Sequence[set[str]]) -> _Screened:
        return _screen(offers, known=known, safety=safety, fitness=fitness, seed=derive(seed, "fitness"))

    if last is None:
        first = screen([[Proposal(op="seed", instruction=item)] for item in seeds], [set() for _ in seeds])
        alive = tuple(lineage[0] for lineage in first.lineages if lineage)
        last = Step(t=-1, tau=schedule.tau_start, current=alive, best=alive, proposed=alive, n_unsafe=first.n_unsafe)
        yield last
    for t in range(last.t + 1, schedule.steps):
        current = [candidate.instruction for candidate in last.current]
        known = [{instruction.id} for instruction in current]
        mutants = screen(mutator.mutate(current, seed=derive(seed, "mutate", t)), known)
        pairs = [
            _pairs(lineage, schedule=schedule, key=(seed, t, x.id))
            for x, lineage in zip(current, mutants.lineages, strict=True)
        ]
        fused = iter(mutator.recombine([pair for own in pairs for pair in own], seed=derive(seed, "recombine", t)))
        for ids, lineage in zip(known, mutants.lineages, strict=True):
            ids.update(candidate.instruction.id for candidate in lineage)
        children = screen([list(itertools.islice(fused, len(own))) for own in pairs], known)
        pools = [mutated + fresh for mutated, fresh in zip(mutants.lineages, children.lineages, strict=True)]
        chosen = [
            _anneal(old, pool, tau=schedule.tau(t), key=(seed, t))
            for old, pool in zip(last.current, pools, strict=True)
        ]
        last = Step(
            t=t,
            tau=schedule.tau(t),
            current=tuple(chosen),
            best=tuple(new if value(new) > value(old) else old for old, new in zip(last.best, chosen, strict=True)),
            proposed=tuple(itertools.chain.from_iterable(pools)),
            n_unsafe=mutants.n_unsafe + children.n_unsafe,
            n_failed=mutants.n_failed + children.n_failed,
        )
        yield last


def value(candidate: Candidate) -> float:
    """F of a candidate in nats; -inf where it could not be estimated, so any measured candidate beats it."""
    return -math.inf if candidate.fitness.value is None else candidate.fitness.value


def _screen(
    offers: Sequence[Sequence[Proposal]],
    *,
    known: Sequence[set[str]],
    safety: Scorer,
    fitness: FitnessEstimator,
    seed: int,
) -> _Screened:
    """Every offer judged, the harmless ones scored, by lineage. Repeats of a known text count as failed offers."""
    fresh: list[list[Instruction]] = []
    for own, ids in zip(offers, known, strict=True):
        texts = {offer.instruction.id: offer.instruction for offer in own if offer.instruction is not None}
        fresh.append([instruction for key, instruction in texts.items() if key not in ids])
    flat = list(itertools.chain.from_iterable(fresh))
    verdicts = safety.score([Exchange(instruction=instruction) for instruction in flat])
    harmless = [(x, verdict) for x, verdict in zip(flat, verdicts, strict=True) if _is_harmless(verdict)]
    scores = fitness.estimate([instruction for instruction, _ in harmless], seed=seed)
    scored = iter([Candidate(instruction=x, safety=v, fitness=f) for (x, v), f in zip(harmless, scores, strict=True)])
    judged = iter(verdicts)
    lineages = [[next(scored) for _ in own if _is_harmless(next(judged))] for own in fresh]
    n_offered = sum(len(own) for own in offers)
    return _Screened(lineages=lineages, n_unsafe=len(flat) - len(harmless), n_failed=n_offered - len(flat))


def _is_harmless(verdict: Verdict) -> bool:
    """Whether a safety verdict says harmless; debatable is not, and unscored is not."""
    return verdict.label == "safe" and verdict.value is not None


def _pairs(
    mutants: Sequence[Candidate], *, schedule: Schedule, key: tuple[object, ...]
) -> list[tuple[Instruction, Instruction]]:
    """``schedule.children`` distinct pairs drawn from the top ``schedule.elite`` mutants of one lineage."""
    top = sorted(mutants, key=value, reverse=True)[: schedule.elite]
    pairs = list(itertools.combinations([candidate.instruction for candidate in top], 2))
    return stream("pairs", *key).sample(pairs, min(schedule.children, len(pairs)))


def _anneal(old: Candidate, pool: Sequence[Candidate], *, tau: float, key: tuple[object, ...]) -> Candidate:
    """The fittest of ``pool``, or ``old``: accepted with probability min(1, exp((F' - F) / τ)); ties at random."""
    if not pool:
        return old
    rng = stream("anneal", *key, old.instruction.id)
    best = max(pool, key=lambda candidate: (value(candidate), rng.random()))
    if value(best) >= value(old):
        return best
    if tau <= 0 or value(best) == -math.inf:
        return old
    return best if rng.random() < math.exp((value(best) - value(old)) / tau) else old
