"""How replies are drawn: the decoding scheme q_θ, and the exchanges that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from evorefuse.ports import LM
from evorefuse.records import Exchange, Instruction, Message, Request, derive


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """A decoding scheme; the paper's values are the defaults (EVOREFUSE §4.1).

    ``samples`` is K, the replies drawn for each instruction; ``max_tokens`` counts new tokens a reply. ``system`` is
    an explicit system prompt (None: the model's own condition, "" an empty turn).
    """

    samples: int = 10
    max_tokens: int = 50
    temperature: float = 1.0
    top_p: float = 0.995
    top_k: int = 30
    system: str | None = None


def requests_for(instruction: Instruction, *, sampling: Sampling, seed: int) -> list[Request]:
    """K requests for one instruction. Their seeds depend on ``seed``, the instruction's id and the sample alone."""
    turns = () if sampling.system is None else (Message(role="system", content=sampling.system),)
    return [
        Request(
            messages=(*turns, Message(role="user", content=instruction.text)),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=derive(seed, instruction.id, sample),
            sample=sample,
        )
        for sample in range(sampling.samples)
    ]


def draw(
    target: LM, instructions: Sequence[Instruction], *, sampling: Sampling, seed: int
) -> list[tuple[Exchange, ...]]:
    """For each instruction its K exchanges with ``target``, all from one batch."""
    requests = [request for x in instructions for request in requests_for(x, sampling=sampling, seed=seed)]
    replies = iter(target.complete(requests))
    model = str(target.identity.get("name", ""))
    return [
        tuple(Exchange(instruction=x, reply=next(replies), model=model) for _ in range(sampling.samples))
        for x in instructions
    ]
