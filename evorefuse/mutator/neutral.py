"""The control arm: edits of the same number, length and form as those of `rules`, without loaded words or emotion."""

from collections.abc import Sequence

from evorefuse.mutator import patterns
from evorefuse.records import Instruction, Proposal

STRATEGIES = tuple(f"neutral_{i}" for i in range(1, 10))


class Neutral:
    """Adds everyday remarks, so that what a search gains by mere length and selection can be told apart."""

    def __init__(self, *, strategies: Sequence[str] = STRATEGIES, max_words: int = 60) -> None:
        """Read the patterns.

        Args:
            strategies: which of the nine sets of remarks, in the order of the proposals.
            max_words: the length limit of a child, in words.

        Raises:
            ValueError: for an unknown strategy or a limit below 1.
        """
        self._engine = patterns.load(
            "patterns_neutral.jsonl",
            strategies=strategies,
            max_words=max_words,
            salience=lambda sentence: len(sentence.split()),
        )

    def mutate(self, parents: Sequence[Instruction], *, seed: int) -> list[list[Proposal]]:
        """For each parent one proposal a strategy."""
        return self._engine.mutate(parents, seed=seed)

    def recombine(self, pairs: Sequence[tuple[Instruction, Instruction]], *, seed: int) -> list[Proposal]:
        """One child a pair; it keeps the longest remarks."""
        return self._engine.recombine(pairs, seed=seed)
