"""Targets that give no log-probabilities, and several targets in one fitness."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from fakes import Echo, instructions
from test_fitness import estimator, judged

from evorefuse.fitness.joint import Joint
from evorefuse.records import Fitness


@dataclass(kw_only=True)
class Mute(Echo):
    """A target that says of itself that it gives no log-probabilities."""

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name, "logprobs": False}


def test_a_target_without_log_probabilities_has_no_confidence_term_and_the_record_says_so():
    found = estimator(confidence_weight=5.0, target=Mute()).combine(judged((0.5, None, None)))
    assert found.log_confidence is None
    assert found.value == found.log_refusal == pytest.approx(math.log(0.5))


def test_where_a_target_kept_promised_log_probabilities_back_there_is_no_fitness_to_compare():
    found = estimator(confidence_weight=5.0).combine(judged((0.5, None, None)))
    assert found.value is None
    assert "target.logprobs=false" in (found.error or "")
    assert estimator(confidence_weight=0.0).combine(judged((0.5, None, None))).value == pytest.approx(math.log(0.5))
    some = estimator(confidence_weight=1.0).combine(judged((0.5, None, None), (0.5, (-2.0,), None)))
    assert some.value == pytest.approx(math.log(0.5) - 2.0)


class Fixed:
    """A fitness that is what it was told for each text."""

    def __init__(self, **found: Fitness) -> None:
        self.found, self.seeds = found, []

    def estimate(self, xs: Sequence[Any], *, seed: int) -> list[Fitness]:
        self.seeds.append(seed)
        return [self.found[x.text] for x in xs]


def test_joint_targets_are_as_fit_as_the_least_or_as_their_mean():
    mild = Fixed(x=Fitness(value=-1.0, log_refusal=-0.9, log_confidence=-0.1, n=4, n_unscored=1))
    firm = Fixed(x=Fitness(value=-3.0, log_refusal=-2.5, log_confidence=None, n=2))
    least = Joint(parts={"a": mild, "b": firm}, how="minimum").estimate(instructions("x"), seed=1)[0]
    assert (least.value, least.log_refusal, least.log_confidence) == (-3.0, -2.5, None)
    mean = Joint(parts={"a": mild, "b": firm}, how="mean").estimate(instructions("x"), seed=1)[0]
    assert (mean.value, mean.log_refusal, mean.log_confidence) == (-2.0, pytest.approx(-1.7), None)
    assert (mean.n, mean.n_unscored) == (least.n, least.n_unscored) == (6, 1)
    assert mild.seeds[0] != firm.seeds[0]  # each target draws its own samples


def test_joint_targets_of_which_one_could_not_be_measured_have_no_fitness():
    broken = Fixed(x=Fitness(value=None, error="timed out", n_unscored=3))
    found = Joint(parts={"a": Fixed(x=Fitness(value=0.0, n=3)), "b": broken}).estimate(instructions("x"), seed=1)[0]
    assert found.value is None
    assert found.error == "b: timed out"
    with pytest.raises(ValueError, match="names no target"):
        Joint(parts={})
