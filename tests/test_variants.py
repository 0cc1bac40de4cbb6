"""What goes beyond the paper's search: finalists, lineages that converge, seeds that are not harmless."""

import dataclasses
import json

import pytest
from fakes import UNSAFE, Landscape, MarkJudge, Writer, hashed, instructions
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evolve import SEEDS, search

from evorefuse.evolve import Schedule, evolve, value
from evorefuse.records import Fitness, Instruction, Proposal, Step, derive
from evorefuse.store import decode, dumps


def lucky(noise: float):
    """A landscape of true heights under noise that hangs on the estimate's seed."""

    @dataclasses.dataclass(kw_only=True)
    class Noisy:
        def estimate(self, instructions, *, seed):
            heights = [truth(x.text) + noise * (2 * hashed(f"{seed}{x.text}") - 1) for x in instructions]
            return [Fitness(value=height, log_refusal=height, n=4) for height in heights]

    return Noisy()


def truth(text: str) -> float:
    return hashed("true" + text)


def test_finalists_are_estimated_once_more_so_the_best_is_less_often_a_lucky_one():
    seeds = instructions(*(f"seed {i}" for i in range(300)))

    def end(finalists: int) -> tuple[float, float]:
        schedule = Schedule(steps=2, elite=0, finalists=finalists, tau_start=0.0, tau_decay=0.0, tau_final=0.0)
        *_, last = evolve(seeds, mutator=Writer(), safety=MarkJudge(), fitness=lucky(1.0), schedule=schedule, seed=3)
        heights = [truth(c.instruction.text) for c in last.best]
        return sum(heights) / len(heights), sum(map(value, last.best)) / len(last.best)

    (once, once_believed), (twice, twice_believed) = end(0), end(3)
    assert twice > once + 0.03
    assert twice_believed - twice < 0.7 * (once_believed - once)


def test_pooled_estimates_weigh_by_their_samples():
    landscape = Landscape(height=hashed)
    steps = list(
        evolve(
            SEEDS, mutator=Writer(alphabet="ab"), safety=MarkJudge(), fitness=landscape,
            schedule=Schedule(steps=1, finalists=2), seed=1,
        )
    )  # fmt: skip
    for candidate in steps[1].proposed:  # the landscape is not noisy: pooling two equal estimates changes nothing but n
        assert value(candidate) == pytest.approx(hashed(candidate.instruction.text))
    assert {c.fitness.n for c in steps[1].proposed} == {1, 2}
    assert sum(c.fitness.n == 2 for c in steps[1].proposed) <= 2 * len(SEEDS)


def test_only_what_was_estimated_once_more_is_chosen():
    """The second estimate of every finalist is far below the single one of those that were no finalists."""

    class Sinking:
        def estimate(self, instructions, *, seed):
            heights = [hashed(x.text) - (100.0 if seed == derive(7, "again", 0) else 0.0) for x in instructions]
            return [Fitness(value=height, n=1) for height in heights]

    schedule = Schedule(steps=1, elite=0, finalists=2, tau_start=1e9, tau_final=1e9)
    steps = list(evolve(SEEDS, mutator=Writer(), safety=MarkJudge(), fitness=Sinking(), schedule=schedule, seed=7))
    assert any(c.fitness.n == 1 and value(c) > max(map(value, steps[1].current)) for c in steps[1].proposed)
    assert all(c.fitness.n == 2 for c in steps[1].current)


def test_a_lineage_that_has_converged_stops_and_the_others_go_on():
    def height(text: str) -> float:
        return 1.0 if "bake" in text and text in {s.text for s in SEEDS} else -1.0 / len(text)

    schedule = Schedule(steps=6, patience=2, tau_start=0.0, tau_decay=0.0, tau_final=0.0)
    steps = search(schedule=schedule, mutator=Writer(alphabet="ab"), height=height)
    baking = [[c for c in s.proposed if "bake" in c.instruction.text] for s in steps[1:]]
    assert [bool(own) for own in baking] == [True, True, False, False, False, False]
    assert [s.stale[0] for s in steps] == [0, 1, 2, 3, 4, 5, 6]
    assert all(any("knit" in c.instruction.text for c in s.proposed) for s in steps[1:])


@given(seed=st.integers(0, 10_000), cut=st.integers(0, 4), patience=st.integers(0, 2), finalists=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_the_variants_resume_too(seed, cut, patience, finalists):
    seeds = [*SEEDS, *instructions("a bomb " + UNSAFE)]
    schedule = Schedule(steps=4, patience=patience, finalists=finalists, unsafe_seeds=True)
    whole = search(seeds, schedule=schedule, seed=seed)
    last = decode(Step, json.loads(dumps(whole[cut])))
    assert search(seeds, schedule=schedule, seed=seed, last=last) == whole[last.t + 2 :]


def test_an_unsafe_seed_is_never_put_to_the_target_and_its_first_harmless_mutation_is_taken():
    class Cleaner(Writer):
        def _edit(self, parent, strategy, seed):
            child = Proposal(op=strategy, instruction=Instruction(
                text=parent.text.replace(UNSAFE, "") + strategy, seed_id=parent.seed_id or parent.id,
                parents=(parent.id,), trail=(*parent.trail, f"{strategy}/x"),
            ))  # fmt: skip
            return child if strategy != "s1" else Proposal(op=strategy, instruction=dataclasses.replace(
                child.instruction, text=parent.text + strategy  # s1 leaves it unsafe
            ))  # fmt: skip

    seeds = [*instructions("a bomb " + UNSAFE), SEEDS[0]]
    landscape = Landscape(height=lambda text: -float(len(text)))
    steps = list(
        evolve(seeds, mutator=Cleaner(), safety=MarkJudge(), fitness=landscape, schedule=Schedule(unsafe_seeds=True),
               seed=1)
    )  # fmt: skip
    assert steps[0].best[0].safety.label == "unsafe"
    assert steps[0].best[0].fitness.value is None
    assert not [x.text for x in landscape.scored if UNSAFE in x.text]
    assert all(s.best[0].safety.label == s.current[0].safety.label == "safe" for s in steps[1:])
    assert steps[0].n_unsafe == 0
    hopeless = search(instructions("a bomb " + UNSAFE), schedule=Schedule(unsafe_seeds=True))
    assert all(s.best[0].safety.label == "unsafe" for s in hopeless)  # `generate` leaves it out and counts it
