"""The pattern engine of the offline mutators: edits that add one vetted sentence to an instruction.

A pattern is a sentence to put before or after the instruction, or a frame ("…, our teacher says this:") around it.
Slots ``{jar|lid}`` hold choices of words. As edits only add, a harmless instruction stays harmless when every pattern
is harmless by itself, and any instruction can be taken apart again into its core and its edits.
"""

import itertools
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from evorefuse.mutator.strategies import RECOMBINE
from evorefuse.records import Instruction, Proposal, stream

DATA = Path(__file__).parent.parent / "data"
_ENDS = ".!?…:؟。！？۔"
_BREAK = re.compile(rf"(?:(?<=[{_ENDS}])|(?<=[{_ENDS}][\"'”’)\]]))\s+")
_CLOSED = re.compile(rf"[{_ENDS}][\"'”’)\]]*$")
_ASKS = re.compile(
    r"(how|what|when|where|which|who|whom|whose|why|is|are|am|was|were|do|does|did|can|could|may|might|must|shall"
    r"|should|will|would|has|have|had)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """An edit: where its sentence goes, the sentence with its slots, and why it keeps a harmless text harmless."""

    strategy: str
    id: str
    kind: Literal["before", "after", "frame"]
    text: str
    reason: str

    @property
    def op(self) -> str:
        """The name of the edit in a trail: ``strategy/id``."""
        return f"{self.strategy}/{self.id}"

    @property
    def words(self) -> int:
        """The length of its longest filling, in words."""
        return max(len(sentence.split()) for sentence in self.sentences())

    def sentences(self) -> list[str]:
        """Every filling of the slots."""
        return ["".join(choice) for choice in itertools.product(*(p.split("|") for p in re.split("[{}]", self.text)))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """An instruction taken apart: its core (the seed) and the edits around it; ``text`` puts it together."""

    before: tuple[str, ...] = ()
    frame: tuple[str, ...] = ()
    core: str = ""
    after: tuple[str, ...] = ()

    @property
    def edits(self) -> tuple[str, ...]:
        """All edits, in the order of the text."""
        return self.before + self.frame + self.after

    @property
    def text(self) -> str:
        """The instruction."""
        return " ".join((*self.before, *self.frame, self.core, *self.after))

    @property
    def words(self) -> int:
        """Length in words."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Applies patterns; deterministic given the seed, and no item depends on its batch.

    ``max_words`` bounds every child; ``salience`` ranks the edits that a recombination keeps, highest first.
    """

    patterns: Mapping[str, tuple[Pattern, ...]]
    kinds: Mapping[str, str]
    strategies: tuple[str, ...]
    max_words: int
    salience: Callable[[str], int]

    def mutate(self, parents: Sequence[Instruction], *, seed: int) -> list[list[Proposal]]:
        """One proposal a strategy for each parent, in the order of ``strategies``.

        Where a parent has no room left, the new sentence takes the place of earlier ones, drawn at random.
        """
        return [[self._edit(parent, strategy, seed) for strategy in self.strategies] for parent in parents]

    def recombine(self, pairs: Sequence[tuple[Instruction, Instruction]], *, seed: int) -> list[Proposal]:
        """One child a pair: the shared core, the most salient edits of both, and one sentence that joins them."""
        return [self._fuse(first, second, seed) for first, second in pairs]

    def _edit(self, parent: Instruction, strategy: str, seed: int) -> Proposal:
        parts = self._parse(parent.text)
        if not parts.core:
            return Proposal(op=strategy, error="the instruction is empty")
        rng = stream(seed, parent.id, strategy)
        pattern = self._draw(strategy, used=parent.trail, parts=parts, rng=rng)
        for edit in rng.sample(parts.edits, len(parts.edits)):
            if not isinstance(pattern, str):
                break
            parts = _without(parts, edit)
            pattern = self._draw(strategy, used=parent.trail, parts=parts, rng=rng)
        if isinstance(pattern, str):
            return Proposal(op=strategy, error=pattern)
        edited = self._insert(parts, rng.choice(pattern.sentences()), pattern.kind)
        return _child(edited, pattern, trail=(*parent.trail, pattern.op), parents=(parent,))

    def _fuse(self, first: Instruction, second: Instruction, seed: int) -> Proposal:
        a, b = self._parse(first.text), self._parse(second.text)
        if a.text == b.text:
            return Proposal(op=RECOMBINE, error="both parents have the same text")
        if a.core != b.core or not a.core:
            return Proposal(op=RECOMBINE, error="the parents do not share a core: they stem from different seeds")
        rng = stream(seed, first.id, second.id, RECOMBINE)
        trail = tuple(dict.fromkeys((*first.trail, *second.trail)))
        base = self._build(a.core, [pick for pick in (self._best(a, b), self._best(b, a)) if pick])
        pattern = self._draw(RECOMBINE, used=trail, parts=base, rng=rng)
        if isinstance(pattern, str):
            return Proposal(op=RECOMBINE, error=pattern)
        child = self._insert(base, rng.choice(pattern.sentences()), pattern.kind)
        ranked = sorted({*a.edits, *b.edits}, key=lambda edit: (-self.salience(edit), edit))
        child = self._fill(child, ranked, limit=max(len(a.edits), len(b.edits)) + 1)
        return _child(child, pattern, trail=(*trail, pattern.op), parents=(first, second))

    def _best(self, own: Parts, other: Parts) -> str | None:
        """The most salient edit of one parent that the other lacks; None where it has no edit of its own."""
        return max((edit for edit in own.edits if edit not in other.edits), key=self.salience, default=None)

    def _fill(self, parts: Parts, edits: Iterable[str], *, limit: int) -> Parts:
        """``parts`` with as many more of the edits as fit, up to ``limit`` in all, first come first served."""
        for edit in edits:
            fits = len(parts.edits) < limit and parts.words + len(edit.split()) <= self.max_words
            if fits and edit not in parts.edits and not (parts.frame and self.kinds[edit] == "frame"):
                parts = self._insert(parts, edit, self.kinds[edit])
        return parts

    def _build(self, core: str, edits: Sequence[str]) -> Parts:
        """The core with the edits around it; of two frames the first is kept."""
        parts = Parts(core=core)
        for edit in edits:
            if not (parts.frame and self.kinds[edit] == "frame"):
                parts = self._insert(parts, edit, self.kinds[edit])
        return parts

    def _insert(self, parts: Parts, sentence: str, kind: str) -> Parts:
        if kind == "before":
            return replace(parts, before=(sentence, *parts.before))
        if kind == "frame":
            return replace(parts, frame=(sentence,))
        return replace(parts, after=(*parts.after, sentence))

    def _draw(self, strategy: str, *, used: Sequence[str], parts: Parts, rng: random.Random) -> Pattern | str:
        """A pattern that is new to the lineage and fits beside ``parts``, or why there is none."""
        room = self.max_words - parts.words
        new = [pattern for pattern in self.patterns[strategy] if pattern.op not in used]
        new = [pattern for pattern in new if not (pattern.kind == "frame" and parts.frame)]
        if not new:
            return f"every pattern of {strategy} was used in this lineage"
        fitting = [pattern for pattern in new if pattern.words <= room]
        if not fitting:
            return f"no pattern of {strategy} fits: {room} of {self.max_words} words left"
        return rng.choice(fitting)

    def _parse(self, text: str) -> Parts:
        """The instruction taken apart. The core keeps its own spacing and gets an end mark where it lacks one."""
        pieces = _pieces(text.strip())
        own = [i for i, (piece, _) in enumerate(pieces) if piece not in self.kinds]
        if not own:
            return Parts(core=_closed(text.strip()))
        first, last = own[0], own[-1] + 1
        core = "".join(piece + gap for piece, gap in pieces[first:last]).strip()
        head = tuple(piece for piece, _ in pieces[:first])
        frame = tuple(piece for piece in head if self.kinds[piece] == "frame")
        return Parts(
            before=tuple(piece for piece in head if piece not in frame),
            frame=frame,
            core=_closed(core),
            after=tuple(piece for piece, _ in pieces[last:]),
        )


def load(name: str, *, strategies: Sequence[str], max_words: int, salience: Callable[[str], int]) -> Engine:
    """The engine for the patterns in the shipped file ``name``.

    Raises:
        ValueError: where a strategy has no patterns in the file, or ``max_words`` is below 1.
    """
    if max_words < 1:
        raise ValueError(f"max_words is {max_words}; it counts the words of a child and must be at least 1.")
    rows = (DATA / name).read_text(encoding="utf-8").splitlines()
    patterns = [Pattern(**json.loads(row)) for row in rows]
    groups = {p.strategy: tuple(q for q in patterns if q.strategy == p.strategy) for p in patterns}
    unknown = [strategy for strategy in strategies if strategy not in groups or strategy == RECOMBINE]
    if unknown or not strategies:
        known = ", ".join(group for group in groups if group != RECOMBINE)
        raise ValueError(f"strategies are {list(strategies)}; expected one or more of: {known}.")
    kinds = {sentence: pattern.kind for pattern in patterns for sentence in pattern.sentences()}
    return Engine(patterns=groups, kinds=kinds, strategies=tuple(strategies), max_words=max_words, salience=salience)


def _child(parts: Parts, pattern: Pattern, *, trail: tuple[str, ...], parents: tuple[Instruction, ...]) -> Proposal:
    """The proposal of a child with its lineage; an error where it repeats a parent."""
    if parts.text in {parent.text for parent in parents}:
        return Proposal(op=pattern.op, error="the child repeats its parent")
    first = parents[0]
    child = Instruction(
        text=parts.text,
        seed_id=first.seed_id or first.id,
        parents=tuple(parent.id for parent in parents),
        trail=trail,
        source=first.source,
        reason=" ".join(dict.fromkeys(filter(None, (*(parent.reason for parent in parents), pattern.reason)))),
    )
    return Proposal(op=pattern.op, instruction=child)


def _without(parts: Parts, edit: str) -> Parts:
    """``parts`` less one edit."""
    before, frame, after = (
        tuple(own for own in group if own != edit) for group in (parts.before, parts.frame, parts.after)
    )
    return Parts(before=before, frame=frame, core=parts.core, after=after)


def _pieces(text: str) -> list[tuple[str, str]]:
    """The sentences of a text, each with the space that follows it; together they are the text."""
    starts = [0, *(match.end() for match in _BREAK.finditer(text)), len(text)]
    spans = [text[start:end] for start, end in itertools.pairwise(starts)]
    return [(span.rstrip(), span[len(span.rstrip()) :]) for span in spans if span.strip()]


def _closed(text: str) -> str:
    """The text with an end mark: a question mark for a question, else a full stop."""
    if not text or _CLOSED.search(text):
        return text
    return text + ("?" if _ASKS.match(text) else ".")
