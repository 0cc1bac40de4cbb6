"""Several targets at once: instructions that all of them refuse, so that what is found transfers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evorefuse.ports import FitnessEstimator
from evorefuse.records import Fitness, Instruction, derive


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """The mean or the minimum of several fitness estimates of one instruction, in the unit of its parts (nats).

    ``minimum`` is as fit as the target that refuses least; the parts of the record are then those of that target, under
    ``mean`` their averages. An instruction that one target could not be measured on has no fitness.

    Raises:
        ValueError: where there is not one part.
    """

    parts: Mapping[str, FitnessEstimator]
    how: Literal["mean", "minimum"] = "minimum"

    def __post_init__(self) -> None:
        """Refuse an empty set of targets."""
        if not self.parts:
            raise ValueError("fitness.parts names no target: give each one a name and a fitness, as conf/fitness/joint")

    def estimate(self, instructions: Sequence[Instruction], *, seed: int) -> list[Fitness]:
        """One fitness an instruction; each target draws its own samples."""
        own = [part.estimate(instructions, seed=derive(seed, name)) for name, part in self.parts.items()]
        return [self._join(dict(zip(self.parts, row, strict=True))) for row in zip(*own, strict=True)]

    def _join(self, found: Mapping[str, Fitness]) -> Fitness:
        n, unscored = sum(f.n for f in found.values()), sum(f.n_unscored for f in found.values())
        for name, fitness in found.items():
            if fitness.value is None:
                return Fitness(value=None, n=n, n_unscored=unscored, error=f"{name}: {fitness.error}")
        if self.how == "minimum":
            least = min(found.values(), key=lambda fitness: fitness.value or 0.0)
            value, refusal, confidence = least.value, least.log_refusal, least.log_confidence
        else:
            value = _mean([fitness.value for fitness in found.values()])
            refusal = _mean([fitness.log_refusal for fitness in found.values()])
            confidence = _mean([fitness.log_confidence for fitness in found.values()])
        return Fitness(value=value, log_refusal=refusal, log_confidence=confidence, n=n, n_unscored=unscored)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, or None where one is missing: a part that a target does not give is absent, not 0."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
