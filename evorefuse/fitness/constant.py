"""No fitness: every candidate is as good as any other, so the search drifts (ablation, EVOREFUSE §4.5)."""

from collections.abc import Sequence
from dataclasses import dataclass

from evorefuse.records import Fitness, Instruction


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The same fitness for all, without asking the target anything."""

    value: float = 0.0

    def estimate(self, instructions: Sequence[Instruction], *, seed: int) -> list[Fitness]:  # noqa: ARG002
        """One equal fitness an instruction."""
        return [Fitness(value=self.value) for _ in instructions]
