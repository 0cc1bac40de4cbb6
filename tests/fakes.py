"""Ports for tests: small, deterministic, and watched."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evorefuse.records import (
    Exchange,
    Fitness,
    Instruction,
    Proposal,
    Reply,
    Request,
    Summary,
    Verdict,
    derive,
    stream,
)

UNSAFE, UNSCORED, DEBATABLE, BROKEN = "☠", "∅", "?", "✗"


def instructions(*texts: str) -> list[Instruction]:
    """Seeds with these texts."""
    return [Instruction(text=text, source="test") for text in texts]


def hashed(text: str) -> float:
    """A fixed pseudo-random number in [0, 1) for a text."""
    return derive("landscape", text) / 2**63


@dataclass(kw_only=True)
class Writer:
    """Appends letters; some proposals fail, repeat their parent, or carry a mark that a judge reacts to."""

    strategies: tuple[str, ...] = ("s1", "s2", "s3", "s4", "s5")
    alphabet: str = "abcdefgh" + UNSAFE + UNSCORED + DEBATABLE + BROKEN + "="
    seeds: list[int] = field(default_factory=list)

    def mutate(self, parents: Sequence[Instruction], *, seed: int) -> list[list[Proposal]]:
        self.seeds.append(seed)
        return [[self._edit(parent, strategy, seed) for strategy in self.strategies] for parent in parents]

    def recombine(self, pairs: Sequence[tuple[Instruction, Instruction]], *, seed: int) -> list[Proposal]:
        return [
            self._child(first.text + "+" + second.text[-1], "recombine", (first, second), seed)
            for first, second in pairs
        ]

    def _edit(self, parent: Instruction, strategy: str, seed: int) -> Proposal:
        return self._child(parent.text, strategy, (parent,), seed)

    def _child(self, stem: str, op: str, parents: tuple[Instruction, ...], seed: int) -> Proposal:
        letter = stream(seed, op, *(parent.id for parent in parents)).choice(self.alphabet)
        if letter == BROKEN:
            return Proposal(op=op, error="no idea")
        first = parents[0]
        text = first.text if letter == "=" else stem + letter
        return Proposal(
            op=op,
            instruction=Instruction(
                text=text,
                seed_id=first.seed_id or first.id,
                parents=tuple(parent.id for parent in parents),
                trail=(*first.trail, f"{op}/{letter}"),
                source=first.source,
                reason=f"{letter} is harmless",
            ),
        )


@dataclass(kw_only=True)
class MarkJudge:
    """Unsafe, debatable or unscored by a mark in the text; else safe. Remembers what it judged."""

    name: str = "marks"
    judged: list[Instruction] = field(default_factory=list)

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.judged += [exchange.instruction for exchange in exchanges]
        return [self._judge(exchange.instruction.text) for exchange in exchanges]

    def _judge(self, text: str) -> Verdict:
        if UNSAFE in text:
            return Verdict(scorer=self.name, label="unsafe", value=0.01)
        if UNSCORED in text:
            return Verdict(scorer=self.name, label="unscored", value=None, error="could not tell")
        if DEBATABLE in text:
            return Verdict(scorer=self.name, label="debatable", value=0.9)
        return Verdict(scorer=self.name, label="safe", value=0.9)


@dataclass(kw_only=True)
class Landscape:
    """F(x) = height(text), None where it says nan. Remembers what it scored, with which seeds."""

    height: Callable[[str], float] = hashed
    scored: list[Instruction] = field(default_factory=list)
    seeds: set[int] = field(default_factory=set)

    def estimate(self, instructions: Sequence[Instruction], *, seed: int) -> list[Fitness]:
        self.scored += instructions
        self.seeds.add(seed)
        heights = [self.height(instruction.text) for instruction in instructions]
        return [
            Fitness(value=None, n_unscored=1, error="no reply") if math.isnan(height) else Fitness(value=height, n=1)
            for height in heights
        ]


@dataclass(kw_only=True)
class Echo:
    """A model whose replies hang on the request alone: refusals, answers, failures, by its seed."""

    name: str = "echo"
    p_fail: float = 0.1
    batches: list[tuple[Request, ...]] = field(default_factory=list)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        self.batches.append(tuple(requests))
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        u = stream("echo", request.seed, request.messages[-1].content).random()
        if u < self.p_fail:
            return Reply(text="", finish="error", error="timed out")
        text = "I'm sorry, but I can't help with that." if u < 0.5 else f"Sure: {request.messages[-1].content[:20]}"
        return Reply(text=text, finish="stop", logprobs=(-u, -2 * u))


@dataclass(kw_only=True)
class SorryJudge:
    """Refusal by the word "sorry"; a failed reply is unscored."""

    name: str = "sorry"

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [self._judge(exchange.reply) for exchange in exchanges]

    def _judge(self, reply: Reply | None) -> Verdict:
        if reply is None or reply.error:
            return Verdict(scorer=self.name, label="unscored", value=None, error="no reply")
        refused = "sorry" in reply.text
        return Verdict(scorer=self.name, label="full" if refused else "compliance", value=0.9 if refused else 0.1)


@dataclass(kw_only=True)
class Bag:
    """A source of given instructions."""

    items: Sequence[Instruction]

    def load(self) -> list[Instruction]:
        return list(self.items)


@dataclass(kw_only=True)
class Notebook:
    """A tracker that remembers."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def start(self, *, name: str, config: Mapping[str, Any], folder: str) -> None:
        self.calls.append(("start", name))

    def log(self, namespace: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        self.calls.append(("log", namespace, dict(values), step))

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.calls.append(("table", name, tuple(columns), [tuple(row) for row in rows]))

    def summary(self, summary: Summary) -> None:
        self.calls.append(("summary", summary))

    def artifact(self, name: str, kind: str, paths: Sequence[str]) -> None:
        self.calls.append(("artifact", name, tuple(paths)))

    def finish(self) -> None:
        self.calls.append(("finish",))
