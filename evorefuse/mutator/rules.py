"""The nine strategies of EVOREFUSE §3.3, offline: vetted sentences that sound bad and are harmless by construction."""

import json
import re
from collections.abc import Sequence

from evorefuse.mutator import patterns
from evorefuse.mutator.strategies import STRATEGIES
from evorefuse.records import Instruction, Proposal


class Rules:
    """Adds figurative violence on harmless objects, games and fiction, sensitive but innocent words, loud emotion."""

    def __init__(self, *, strategies: Sequence[str] = STRATEGIES, max_words: int = 60) -> None:
        """Read the patterns and the lexicon.

        Args:
            strategies: which of the nine, in the order of the proposals.
            max_words: the length limit of a child, in words.

        Raises:
            ValueError: for an unknown strategy or a limit below 1.
        """
        lexicon = json.loads((patterns.DATA / "lexicon.json").read_text(encoding="utf-8"))
        stems = [stem for group in lexicon.values() for stem in group]
        loaded = re.compile(r"\b(?:" + "|".join(stems).replace("*", r"\w*") + r")\b", re.IGNORECASE)
        self._engine = patterns.load(
            "patterns_rules.jsonl",
            strategies=strategies,
            max_words=max_words,
            salience=lambda sentence: len(loaded.findall(sentence)),
        )

    def mutate(self, parents: Sequence[Instruction], *, seed: int) -> list[list[Proposal]]:
        """For each parent one proposal a strategy."""
        return self._engine.mutate(parents, seed=seed)

    def recombine(self, pairs: Sequence[tuple[Instruction, Instruction]], *, seed: int) -> list[Proposal]:
        """One child a pair; it keeps the edits with the most loaded words."""
        return self._engine.recombine(pairs, seed=seed)
