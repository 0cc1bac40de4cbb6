"""The nine strategies of EVOREFUSE §3.3 and recombination, written by a language model.

The words that it is asked with are files under ``data/prompts/mutate``. What it writes is a proposal, not a fact: that
it is harmless is for the safety judge to say.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evorefuse.mutator.strategies import RECOMBINE, STRATEGIES
from evorefuse.ports import LM
from evorefuse.prompts import Template, inert, mark_for, read, shipped
from evorefuse.records import Instruction, Message, Proposal, derive
from evorefuse.store import read_jsonl
from evorefuse.structured import Answer, Prompt, Text, ask

_PARTS = {"request", "from_unsafe", "mined", RECOMBINE}  # templates that are no strategies
_MAX_CHARACTERS = 20  # a word, on average: texts without spaces have a length too
_SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK"}  # Japanese mixes them


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What the writer answers with."""

    instruction: Text
    reason: Text


class LLM:
    """Rewrites instructions so that they sound alarming and are not; each with the reason why it is harmless."""

    def __init__(
        self,
        *,
        writer: LM,
        strategies: Sequence[str] = STRATEGIES,
        mined: str | None = None,
        max_words: int = 60,
        from_unsafe: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 400,
    ) -> None:
        """Read the prompts.

        Args:
            writer: the model that writes.
            strategies: which of the nine, in the order of the proposals.
            mined: a JSONL file of further strategies (``name``, ``tactic``, ``mechanism``), as stage `mine` writes it.
            max_words: the length limit of a child, in words; 20 characters a word on average.
            from_unsafe: seeds may be harmful; their first mutation must make them harmless.
            temperature: of the writer's sampling.
            top_p: of the writer's sampling.
            max_tokens: new tokens an answer.

        Raises:
            FileNotFoundError: where ``mined`` does not exist.
            ValueError: for an unknown strategy, no strategy, a limit below 1, or a broken file ``mined``.
        """
        known = [name.removeprefix("mutate/") for name in shipped("mutate")]
        unknown = [name for name in strategies if name not in known or name in _PARTS]
        if unknown or not (strategies or mined) or len(set(strategies)) < len(strategies):
            expected = ", ".join(name for name in known if name not in _PARTS)
            raise ValueError(f"strategies are {list(strategies)}; expected one or more of: {expected}.")
        if max_words < 1:
            raise ValueError(f"max_words is {max_words}; it counts the words of a child and must be at least 1.")
        used = [
            "request",
            RECOMBINE,
            *strategies,
            *(["from_unsafe"] if from_unsafe else []),
            *(["mined"] * bool(mined)),
        ]
        self._templates = {name: read(f"mutate/{name}") for name in used}
        self._tactics = {name: self._templates[name].fill() for name in strategies}
        if mined:
            self._tactics |= _mined(Path(mined).expanduser(), self._templates["mined"], taken=known)
        self._fused = self._templates[RECOMBINE].fill()
        self._aside = self._templates["from_unsafe"].fill() if from_unsafe else ""
        self._writer, self._max_words = writer, max_words
        self._scheme: Mapping[str, Any] = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}

    @property
    def identity(self) -> Mapping[str, Any]:
        """The writer's identity, and the SHA-256 of every template that is used."""
        templates = {name: template.sha256 for name, template in self._templates.items()}
        return {"writer": dict(self._writer.identity), "templates": templates}

    def mutate(self, parents: Sequence[Instruction], *, seed: int) -> list[list[Proposal]]:
        """For each parent one proposal a strategy, the mined ones last; all are asked for in one batch."""
        tasks = [(strategy, (parent,)) for parent in parents for strategy in self._tactics]
        offers = iter(self._write(tasks, seed=seed))
        return [[next(offers) for _ in self._tactics] for _ in parents]

    def recombine(self, pairs: Sequence[tuple[Instruction, Instruction]], *, seed: int) -> list[Proposal]:
        """One child a pair; pairs of equal or empty texts have none."""
        return self._write([(RECOMBINE, pair) for pair in pairs], seed=seed)

    def _write(self, tasks: Sequence[tuple[str, tuple[Instruction, ...]]], *, seed: int) -> list[Proposal]:
        faults = [_fault(parents) for _, parents in tasks]
        sound = [task for task, fault in zip(tasks, faults, strict=True) if not fault]
        prompts = [self._prompt(strategy, parents, seed=seed) for strategy, parents in sound]
        answers = iter(ask(self._writer, prompts, kind=Draft, **self._scheme))
        return [
            Proposal(op=strategy, error=fault) if fault else self._offer(strategy, parents, next(answers))
            for (strategy, parents), fault in zip(tasks, faults, strict=True)
        ]

    def _offer(self, strategy: str, parents: Sequence[Instruction], answer: Answer[Draft]) -> Proposal:
        if answer.value is None:
            return Proposal(op=strategy, error=answer.error or "no answer")
        if objection := self._objection(answer.value.instruction, parents):
            return Proposal(op=strategy, error=objection)
        return _child(answer.value, parents, op=f"{strategy}/llm")

    def _prompt(self, strategy: str, parents: Sequence[Instruction], *, seed: int) -> Prompt:
        texts = [inert(parent.text) for parent in parents]
        words = self._templates["request"].fill(
            tactic=self._fused if strategy == RECOMBINE else self._tactics[strategy],
            aside="" if any(parent.trail for parent in parents) else self._aside,
            parents=texts,
            mark=mark_for(*texts),
            max_words=self._max_words,
        )
        key = derive(seed, strategy, *(parent.id for parent in parents))
        return Prompt(messages=(Message(role="user", content=words),), seed=key)

    def _objection(self, text: str, parents: Sequence[Instruction]) -> str:
        """Why a draft is no proposal, or the empty string."""
        if any(_plain(text) == _plain(parent.text) for parent in parents):
            return "the child repeats its parent"
        words = len(text.split())
        if words > self._max_words or len(text) > _MAX_CHARACTERS * self._max_words:
            return f"it has {words} words and {len(text)} characters; the limit is {self._max_words} words"
        own, expected = _script(text), {_script(parent.text) for parent in parents} - {""}
        if expected and own not in expected:
            return f"it is not in the language of its parent: its letters are {own or 'none'}"
        return ""


def _fault(parents: Sequence[Instruction]) -> str:
    """Why there is nothing to ask for, or the empty string."""
    if not all(parent.text.strip() for parent in parents):
        return "the instruction is empty"
    return "both parents have the same text" if len({p.text for p in parents}) < len(parents) else ""


def _child(draft: Draft, parents: Sequence[Instruction], *, op: str) -> Proposal:
    """The proposal of a draft with its lineage. Its reason is the writer's alone: it was asked about the whole text."""
    first = parents[0]
    trail = first.trail if len(parents) == 1 else tuple(dict.fromkeys(e for parent in parents for e in parent.trail))
    child = Instruction(
        text=draft.instruction,
        seed_id=first.seed_id or first.id,
        parents=tuple(parent.id for parent in parents),
        trail=(*trail, op),
        source=first.source,
        reason=draft.reason,
    )
    return Proposal(op=op, instruction=child)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _script(text: str) -> str:
    """The script that most letters of a text belong to, by the first word of their Unicode names (``LATIN``)."""
    names = (unicodedata.name(char, "").split(" ")[0].split("-")[0] for char in text if char.isalpha())
    counts = Counter(_SCRIPTS.get(name, name) for name in names)
    return counts.most_common(1)[0][0] if counts else ""


def _mined(path: Path, template: Template, *, taken: Sequence[str]) -> dict[str, str]:
    """The tactics of a file of mined strategies, by name (letters, digits and underscores).

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where a line is no strategy, or a name is empty or taken.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no mined strategies at {path}; +experiment=mine writes them: mine/strategies.jsonl")
    found: dict[str, str] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        keys = ("name", "tactic", "mechanism")
        if not (isinstance(row, Mapping) and all(isinstance(row.get(key), str) for key in keys)):
            raise ValueError(f"{path}:{number}: expected the texts {', '.join(keys)}, got {str(row)[:80]}")
        words = {key: " ".join(inert(row[key]).split())[:400] for key in keys}
        name = re.sub(r"\W+", "_", words["name"].casefold()).strip("_")
        if not name or name in found or name in taken:
            raise ValueError(f"{path}:{number}: the name {row['name']!r} is empty or taken; give it another")
        found[name] = template.fill(**words)
    if not found:
        raise ValueError(f"{path} holds no strategy")
    return found
