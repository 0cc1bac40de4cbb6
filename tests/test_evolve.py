"""The search against a plain re-writing of algorithm 1, and what must hold of every run of it."""

import itertools
import json
import math

import pytest
from fakes import DEBATABLE, UNSAFE, UNSCORED, Landscape, MarkJudge, Writer, hashed, instructions
from hypothesis import given, settings
from hypothesis import strategies as st

from evorefuse.evolve import Schedule, evolve, value
from evorefuse.records import Candidate, Exchange, Instruction, Proposal, Step, derive, stream
from evorefuse.store import decode, dumps

SEEDS = instructions("bake bread", "knit a sock", "plant a tree", "fold a crane")
MARKS = (UNSAFE, UNSCORED, DEBATABLE)
schedules = st.builds(
    Schedule,
    steps=st.integers(1, 4),
    elite=st.integers(0, 5),
    children=st.integers(0, 4),
    tau_start=st.sampled_from([0.0, 0.1, 3.0]),
    tau_decay=st.sampled_from([0.0, 0.05]),
    tau_final=st.sampled_from([0.0, 0.05]),
)


def holed(text: str) -> float:
    """A landscape that cannot be measured in places."""
    return math.nan if hashed("hole" + text) < 0.15 else hashed(text)


def search(seeds=SEEDS, *, schedule=None, seed=1, last=None, mutator=None, height=holed, safety=None) -> list[Step]:
    """All steps of a search."""
    return list(
        evolve(
            seeds, mutator=mutator or Writer(), safety=safety or MarkJudge(), fitness=Landscape(height=height),
            schedule=schedule or Schedule(), seed=seed, last=last,
        )
    )  # fmt: skip


def tried(offers: list[Proposal], seen: set[str], height) -> list[tuple[Instruction, float]]:
    """The new and harmless offers with their F, one at a time."""
    found: dict[str, tuple[Instruction, float]] = {}
    for offer in offers:
        if offer.instruction is None or offer.instruction.text in seen:
            continue
        if MarkJudge().score([Exchange(instruction=offer.instruction)])[0].label == "safe":
            f = height(offer.instruction.text)
            found[offer.instruction.text] = (offer.instruction, -math.inf if math.isnan(f) else f)
    return list(found.values())


def algorithm_1(x: Instruction, *, s: Schedule, seed: int, height) -> list[tuple[str, str]]:
    """EVOREFUSE algorithm 1 for one seed, written as it reads; (current, best) texts after each iteration."""
    writer, f = Writer(), height(x.text)
    f = -math.inf if math.isnan(f) else f
    best, f_best, path = x, f, [(x.text, x.text)]
    for t in range(s.steps):
        mutants = tried(writer.mutate([x], seed=derive(seed, "mutate", t))[0], {x.text}, height)
        top = [m for m, _ in sorted(mutants, key=lambda item: -item[1])][: s.elite]
        couples = list(itertools.combinations(top, 2))
        couples = stream("pairs", seed, t, x.id).sample(couples, min(s.children, len(couples)))
        offers = writer.recombine(couples, seed=derive(seed, "recombine", t))
        children = tried(offers, {x.text, *(m.text for m, _ in mutants)}, height)
        pool = mutants + children
        if pool:
            rng = stream("anneal", seed, t, x.id)
            luck = [rng.random() for _ in pool]
            f_new, _, at = max((own, luck[i], i) for i, (_, own) in enumerate(pool))
            tau = max(s.tau_final, s.tau_start - s.tau_decay * t)
            delta = 1.0 if f_new >= f else 0.0 if tau == 0 or f_new == -math.inf else math.exp((f_new - f) / tau)
            if delta == 1.0 or rng.random() < delta:
                x, f = pool[at][0], f_new
        if f > f_best:
            best, f_best = x, f
        path.append((x.text, best.text))
    return path


@given(schedule=schedules, seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_all_lineages_together_walk_the_path_of_algorithm_1_alone(schedule, seed):
    steps = search(schedule=schedule, seed=seed)
    for i, start in enumerate(SEEDS):
        found = [(step.current[i].instruction.text, step.best[i].instruction.text) for step in steps]
        assert found == algorithm_1(start, s=schedule, seed=seed, height=holed)


def test_the_schedule_is_the_papers():
    paper = Schedule()
    assert (paper.steps, paper.elite, paper.children) == (5, 4, 2)
    assert [paper.tau(t) for t in range(5)] == pytest.approx([0.1, 0.095, 0.09, 0.085, 0.08])
    assert paper.tau(9) == pytest.approx(0.055)
    assert paper.tau(10) == paper.tau(11) == paper.tau(1000) == 0.05


def test_the_seeds_come_first_and_every_step_carries_its_tau():
    steps = search(schedule=Schedule(steps=3))
    assert [step.t for step in steps] == [-1, 0, 1, 2]
    assert [step.tau for step in steps[1:]] == pytest.approx([0.1, 0.095, 0.09])
    assert [c.instruction.text for c in steps[0].current] == [seed.text for seed in SEEDS]


def ops(steps: list[Step]) -> set[str]:
    """The strategies of all that was proposed in the iterations."""
    return {candidate.instruction.strategy for step in steps[1:] for candidate in step.proposed}


def test_an_elite_of_none_recombines_nothing():
    assert "recombine" in ops(search(schedule=Schedule(elite=4)))
    for none in (Schedule(elite=0), Schedule(elite=1), Schedule(children=0)):
        assert "recombine" not in ops(search(schedule=none))
        assert "s1" in ops(search(schedule=none))


def test_only_the_elite_are_parents():
    schedule = Schedule(steps=4, elite=2, children=6)
    for seed in range(20):
        for step in search(SEEDS[:1], schedule=schedule, seed=seed, height=hashed)[1:]:
            mutants = sorted((c for c in step.proposed if c.instruction.strategy != "recombine"), key=value)
            elite = {c.instruction.id for c in mutants[-2:]}
            children = [c.instruction for c in step.proposed if c.instruction.strategy == "recombine"]
            assert len(children) <= 1  # two parents make one distinct pair
            assert all(set(child.parents) == elite for child in children)


def test_at_zero_temperature_the_search_never_goes_down_and_at_a_high_one_it_does():
    def falls(tau: float) -> int:
        schedule = Schedule(steps=6, tau_start=tau, tau_decay=0.0, tau_final=tau)
        paths = [zip(*(step.current for step in search(seed=s, schedule=schedule)), strict=True) for s in range(30)]
        return sum(value(b) < value(a) for path in paths for line in path for a, b in itertools.pairwise(line))

    assert falls(0.0) == 0
    assert falls(5.0) > 50


@pytest.mark.parametrize(("drop", "tau"), [(0.05, 0.1), (0.1, 0.1), (0.02, 0.05), (0.3, 0.1)])
def test_a_worse_candidate_is_accepted_with_the_probability_of_annealing(drop, tau):
    seeds = instructions(*(f"seed {i}" for i in range(4000)))
    schedule = Schedule(steps=1, elite=0, tau_start=tau, tau_decay=0.0, tau_final=tau)
    writer = Writer(strategies=("s1",), alphabet="a")
    steps = search(seeds, schedule=schedule, mutator=writer, height=lambda text: -drop if text.endswith("a") else 0.0)
    share = sum(c.instruction.text.endswith("a") for c in steps[-1].current) / len(seeds)
    expected = math.exp(-drop / tau)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(seeds))


@given(schedule=schedules, seed=st.integers(0, 10_000), cut=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_resuming_after_any_step_equals_going_on(schedule, seed, cut):
    whole = search(schedule=schedule, seed=seed)
    last = whole[min(cut, len(whole) - 1)]
    from_disk = decode(Step, json.loads(dumps(last)))
    assert from_disk == last
    assert search(schedule=schedule, seed=seed, last=from_disk) == whole[last.t + 2 :]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_every_candidate_children_too_is_judged_and_none_but_the_harmless_goes_on(seed):
    judge, landscape = MarkJudge(), Landscape()
    steps = list(
        evolve(SEEDS, mutator=Writer(), safety=judge, fitness=landscape, schedule=Schedule(children=4), seed=seed)
    )
    kept = [c for step in steps for c in (*step.proposed, *step.current, *step.best)]
    assert not [c.instruction.text for c in kept if any(mark in c.instruction.text for mark in MARKS)]
    assert all(c.safety.label == "safe" and c.safety.value is not None for c in kept)
    judged = {instruction.id for instruction in judge.judged}
    assert {c.instruction.id for c in kept} <= judged
    assert {c.instruction.id for c in kept if c.instruction.strategy == "recombine"} <= judged
    assert not [x.text for x in landscape.scored if any(mark in x.text for mark in MARKS)]  # nothing unsafe is sent
    assert all(x.reason for x in judge.judged if x.parents)  # the judge sees the reason too


@pytest.mark.parametrize("mark", MARKS)
def test_a_seed_that_is_not_judged_harmless_is_dropped_and_counted(mark):
    steps = search([*SEEDS[:2], *instructions("a bomb " + mark), SEEDS[2]])
    assert (steps[0].n_unsafe, steps[0].n_unjudged) == ((0, 1) if mark == UNSCORED else (1, 0))
    assert all(len(step.current) == len(step.best) == 3 for step in steps)
    assert [c.instruction for c in steps[0].current] == SEEDS[:3]


@pytest.mark.parametrize("mark", MARKS)
def test_unsafe_and_unjudged_candidates_are_counted_apart(mark):
    schedule = Schedule(steps=2, elite=0)
    steps = search(schedule=schedule, mutator=Writer(strategies=("s1", "s2"), alphabet=mark))
    dropped, none = [0, 4, 4], [0, 0, 0]  # both strategies wrote the same text
    assert [step.n_unsafe for step in steps] == (none if mark == UNSCORED else dropped)
    assert [step.n_unjudged for step in steps] == (dropped if mark == UNSCORED else none)
    assert [step.n_failed for step in steps] == [0, 4, 4]
    assert steps[-1].current == steps[0].current


def test_repeats_and_failures_are_scored_once_and_counted():
    landscape = Landscape(height=hashed)
    writer = Writer(strategies=("s1", "s2", "s3"), alphabet="=")
    steps = list(
        evolve(SEEDS, mutator=writer, safety=MarkJudge(), fitness=landscape, schedule=Schedule(steps=1), seed=1)
    )
    assert len(landscape.scored) == len(SEEDS)
    assert steps[1].n_failed == 3 * len(SEEDS)
    assert steps[1].proposed == ()
    assert steps[1].current == steps[0].current


@given(seed=st.integers(0, 10_000), schedule=schedules)
@settings(max_examples=40, deadline=None)
def test_the_best_of_the_run_never_falls_and_is_the_fittest_seen(seed, schedule):
    steps = search(seed=seed, schedule=schedule)
    for lineage in zip(*(step.best for step in steps), strict=True):
        assert all(value(a) <= value(b) for a, b in itertools.pairwise(lineage))
    for i, start in enumerate(SEEDS):
        own = [c for s in steps for c in s.proposed if (c.instruction.seed_id or c.instruction.id) == start.id]
        assert value(steps[-1].best[i]) == max(map(value, own))


def test_a_candidate_that_could_not_be_measured_loses_to_any_that_could():
    def only_seeds(text: str) -> float:
        return -50.0 if text in {seed.text for seed in SEEDS} else math.nan

    steps = search(schedule=Schedule(tau_start=100, tau_decay=0, tau_final=100), height=only_seeds)
    assert steps[-1].current == steps[0].current
    assert all(isinstance(c, Candidate) and c.fitness.error for c in steps[1].proposed)


def test_without_a_fitness_the_search_returns_where_it_drifted_to():
    steps = search(height=lambda _: 0.0)
    assert all(best.instruction.id not in {seed.id for seed in SEEDS} for best in steps[-1].best)
    assert steps[-1].best == steps[-1].current


def test_randomness_is_derived_from_the_seed_and_the_step():
    assert search(seed=3) == search(seed=3)
    assert search(seed=3)[1:] != search(seed=4)[1:]
    writer, landscape = Writer(), Landscape()
    list(evolve(SEEDS, mutator=writer, safety=MarkJudge(), fitness=landscape, schedule=Schedule(), seed=3))
    assert len(set(writer.seeds)) == 5
    assert len(landscape.seeds) == 1  # equal texts meet equal samples: differences are not luck


def test_no_seed_left_is_a_run_of_empty_steps():
    steps = search(instructions(UNSAFE), schedule=Schedule(steps=2))
    assert [(step.current, step.proposed, step.n_unsafe) for step in steps] == [((), (), 1), ((), (), 0), ((), (), 0)]
