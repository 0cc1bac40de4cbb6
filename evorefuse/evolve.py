"""The search (EVOREFUSE §3.3, algorithm 1): a pure generator. No files, no clock, no global randomness.

All lineages of a chunk advance together, so each port sees one big batch an iteration.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from evorefuse.ports import FitnessEstimator, Mutator, Scorer
from evorefuse.records import Candidate, Exchange, Fitness, Instruction, Proposal, Step, Verdict, derive, stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The search's numbers; the paper's values are the defaults (EVOREFUSE §4.1).

    ``elite`` is L, the mutants that may be recombined (0: no recombination), and ``children`` N, the pairs drawn from
    them. Annealing: τ_t = max(tau_final, tau_start - tau_decay·t); all three 0 is greedy.

    Beyond the paper: before one is chosen, the ``finalists`` fittest of a lineage and its current instruction are
    estimated once more and the estimates pooled, since the best of many noisy ones is mostly a lucky one. A lineage
    that has kept its instruction for ``patience`` iterations has converged and stops (0: never). With ``unsafe_seeds``
    (the paper's TRIDENT seeds) a seed that is not harmless begins a lineage too, unscored; only what is harmless is
    ever kept, so the first accepted mutation is what made it so.
    """

    steps: int = 5
    elite: int = 4
    children: int = 2
    tau_start: float = 0.1
    tau_decay: float = 0.005
    tau_final: float = 0.05
    finalists: int = 0
    patience: int = 0
    unsafe_seeds: bool = False

    def tau(self, t: int) -> float:
        """The annealing temperature of iteration ``t`` (nats)."""
        return max(self.tau_final, self.tau_start - self.tau_decay * t)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Screened:
    lineages: list[list[Candidate]]
    n_unsafe: int
    n_unjudged: int
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

    A seed that is not judged harmless has no lineage (but for ``unsafe_seeds``): it is counted in ``n_unsafe``, or
    ``n_unjudged``, of the first step.
    """

    def screen(offers: Sequence[Sequence[Proposal]], known: Sequence[set[str]]) -> _Screened:
        return _screen(offers, known=known, safety=safety, fitness=fitness, seed=derive(seed, "fitness"))

    if last is None:
        last = _begin(seeds, safety=safety, fitness=fitness, schedule=schedule, seed=derive(seed, "fitness"))
        yield last
    for t in range(last.t + 1, schedule.steps):
        going = [not schedule.patience or stale < schedule.patience for stale in last.stale]
        current = [candidate.instruction for candidate in itertools.compress(last.current, going)]
        bred = _breed(current, mutator=mutator, screen=screen, schedule=schedule, seed=seed, t=t)
        pools = iter(bred.lineages)
        contests = [(old, next(pools) if goes else []) for old, goes in zip(last.current, going, strict=True)]
        duels = _again(contests, fitness=fitness, finalists=schedule.finalists, seed=derive(seed, "again", t))
        chosen = [_anneal(old, rivals, tau=schedule.tau(t), key=(seed, t)) for old, rivals, _ in duels]
        last = Step(
            t=t,
            tau=schedule.tau(t),
            current=tuple(chosen),
            best=tuple(map(_better, last.best, [old for old, *_ in duels], chosen)),
            proposed=tuple(itertools.chain.from_iterable(pool for *_, pool in duels)),
            stale=tuple(
                stale + 1 if _same(new, old) else 0
                for stale, new, old in zip(last.stale, chosen, last.current, strict=True)
            ),
            n_unsafe=bred.n_unsafe,
            n_unjudged=bred.n_unjudged,
            n_failed=bred.n_failed,
        )
        yield last


def _breed(
    current: Sequence[Instruction],
    *,
    mutator: Mutator,
    screen: Callable[[Sequence[Sequence[Proposal]], Sequence[set[str]]], _Screened],
    schedule: Schedule,
    seed: int,
    t: int,
) -> _Screened:
    """The harmless mutants of each instruction, and the harmless children of pairs of its fittest mutants."""
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
    return _Screened(
        lineages=[own + fresh for own, fresh in zip(mutants.lineages, children.lineages, strict=True)],
        n_unsafe=mutants.n_unsafe + children.n_unsafe,
        n_unjudged=mutants.n_unjudged + children.n_unjudged,
        n_failed=mutants.n_failed + children.n_failed,
    )


def value(candidate: Candidate) -> float:
    """F of a candidate in nats; -inf where it could not be estimated, so any measured candidate beats it."""
    return -math.inf if candidate.fitness.value is None else candidate.fitness.value


def harmless(verdict: Verdict) -> bool:
    """Whether a safety verdict says harmless; debatable is not, and unscored is not."""
    return verdict.label == "safe" and verdict.value is not None


def _begin(
    seeds: Sequence[Instruction], *, safety: Scorer, fitness: FitnessEstimator, schedule: Schedule, seed: int
) -> Step:
    """The seeds, judged and scored: the step before the first."""
    offers = [[Proposal(op="seed", instruction=item)] for item in seeds]
    first = _screen(offers, known=[set() for _ in seeds], safety=safety, fitness=fitness, seed=seed)
    alive = [lineage[0] for lineage in first.lineages if lineage]
    if schedule.unsafe_seeds:
        dropped = [item for item, lineage in zip(seeds, first.lineages, strict=True) if not lineage]
        verdicts = safety.score([Exchange(instruction=item) for item in dropped])
        unscored = Fitness(value=None, error="not harmless, so not put to the target")
        raw = {
            x.id: Candidate(instruction=x, safety=v, fitness=unscored) for x, v in zip(dropped, verdicts, strict=True)
        }
        scored = {candidate.instruction.id: candidate for candidate in alive}
        alive = [scored.get(item.id) or raw[item.id] for item in seeds]
    lost = not schedule.unsafe_seeds
    started = tuple(alive)
    return Step(
        t=-1, tau=schedule.tau_start, current=started, best=started, proposed=started, stale=(0,) * len(started),
        n_unsafe=first.n_unsafe if lost else 0, n_unjudged=first.n_unjudged if lost else 0,
    )  # fmt: skip


def _again(
    contests: Sequence[tuple[Candidate, list[Candidate]]], *, fitness: FitnessEstimator, finalists: int, seed: int
) -> list[tuple[Candidate, list[Candidate], list[Candidate]]]:
    """By contest (current, pool): the current, its rivals, and the pool.

    The rivals are the fittest of the pool, estimated once more like the current and the estimates pooled; only they may
    be chosen, else one that was lucky once would win where the finalists regress. Without finalists it is all of them.
    """
    if not finalists:
        return [(old, pool, pool) for old, pool in contests]
    ranked = [[old, *sorted(pool, key=value, reverse=True)[:finalists]] if pool else [] for old, pool in contests]
    rivals = {c.instruction.id: c.instruction for own in ranked for c in own if c.fitness.value is not None}
    fresh = dict(zip(rivals, fitness.estimate(list(rivals.values()), seed=seed), strict=True))

    def pooled(candidate: Candidate, own: Sequence[Candidate]) -> Candidate:
        if not any(_same(candidate, rival) for rival in own) or candidate.instruction.id not in fresh:
            return candidate
        return replace(candidate, fitness=_pool(candidate.fitness, fresh[candidate.instruction.id]))

    return [
        (pooled(old, own), [pooled(rival, own) for rival in own[1:]], [pooled(candidate, own) for candidate in pool])
        for (old, pool), own in zip(contests, ranked, strict=True)
    ]


def _pool(first: Fitness, second: Fitness) -> Fitness:
    """Two estimates of one fitness as one: each part averaged by its number of samples."""
    if first.value is None or second.value is None:
        return first if second.value is None else second
    a, b = (first.n, second.n) if first.n + second.n else (1, 1)

    def mean(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else (a * x + b * y) / (a + b)

    return Fitness(
        value=mean(first.value, second.value),
        log_refusal=mean(first.log_refusal, second.log_refusal),
        log_confidence=mean(first.log_confidence, second.log_confidence),
        n=first.n + second.n,
        n_unscored=first.n_unscored + second.n_unscored,
    )


def _same(one: Candidate, other: Candidate) -> bool:
    return one.instruction.id == other.instruction.id


def _better(best: Candidate, old: Candidate, new: Candidate) -> Candidate:
    """The best so far of a lineage, given what it kept; ``old`` is the current one under its latest estimate.

    Of equals it is the new one: a search without a fitness returns where it drifted to, and not its seed.
    """
    best = old if _same(best, old) else best
    return new if value(new) >= value(best) and new.fitness.value is not None else best


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
    kept = [(x, verdict) for x, verdict in zip(flat, verdicts, strict=True) if harmless(verdict)]
    scores = fitness.estimate([instruction for instruction, _ in kept], seed=seed)
    scored = iter([Candidate(instruction=x, safety=v, fitness=f) for (x, v), f in zip(kept, scores, strict=True)])
    judged = iter(verdicts)
    lineages = [[next(scored) for _ in own if harmless(next(judged))] for own in fresh]
    unjudged = sum(verdict.value is None for verdict in verdicts)
    return _Screened(
        lineages=lineages,
        n_unsafe=len(flat) - len(kept) - unjudged,
        n_unjudged=unjudged,
        n_failed=sum(len(own) for own in offers) - len(flat),
    )


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
