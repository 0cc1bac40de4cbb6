"""What the doctor finds: one Check a question, of one model; and the questions that any model is asked."""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from evorefuse.lm.cached import Cached
from evorefuse.ports import LM
from evorefuse.records import Message, Reply, Request, derive

State = Literal["ok", "ignored", "failed", "unknown"]
STORY = "Tell me a long story about a lighthouse, a storm and a lost cat."
OPEN = "Name one animal, one fruit and one city, whichever come to your mind first."
GREETING = "Say hello."
TARGETS, TRAINED = ("target",), ("target", "base")
NODES = {"judge": "judge_model"}  # where a role's node is not called as the role: a stage has that name


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding. ``roles`` are the parts that the model plays in the run, as keys of the configuration.

    ``ok``: as expected. ``ignored``: asked for, and the model or its server takes no notice. ``failed``: wrong.
    ``unknown``: cannot be seen from here. ``needed`` says that the run rests on it; ``cure`` says what to change.
    """

    model: str
    roles: tuple[str, ...]
    name: str
    state: State
    got: str
    cure: str = ""
    needed: bool = False

    @property
    def missing(self) -> bool:
        """Whether the run rests on it and it is not there."""
        return self.needed and self.state in ("ignored", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is asked, and what is tolerated.

    ``repeats`` of one prompt at temperature 0 and at 1; ``requests`` of ``max_tokens`` new tokens for the speed and the
    price. ``tolerance`` bounds the difference, nats a token, between a prompt in a batch and alone in float32,
    ``tolerance_half`` in 16-bit formats.
    """

    repeats: int = 5
    requests: int = 8
    max_tokens: int = 50
    tolerance: float = 1e-3
    tolerance_half: float = 0.25

    def __post_init__(self) -> None:
        """Refuse an effort that finds nothing out.

        Raises:
            ValueError: naming the key.
        """
        for name in ("repeats", "requests", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tolerance", "tolerance_half"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(kw_only=True, slots=True)
class Patient:
    """A model under examination: the engine itself, never a cache; what was found, and what it took to ask.

    ``purse`` pays for what a served model is asked; None: it costs nothing.
    """

    lm: LM
    name: str
    roles: tuple[str, ...]
    needs: tuple[str, ...]
    seed: int
    effort: Effort
    purse: Cached | None = None
    checks: list[Check] = field(default_factory=list[Check])
    requests: int = 0
    read: int = 0
    written: int = 0

    def note(self, name: str, state: State, got: str, *, cure: str = "", needed: bool = True) -> None:
        """Write down a finding. ``needed`` holds only where the run's list of needs names it too."""
        self.checks.append(
            Check(
                model=self.name, roles=self.roles, name=name, state=state, got=got,
                cure="" if state == "ok" else cure, needed=needed and name in self.needs,
            )
        )  # fmt: skip

    def state(self, name: str) -> State | None:
        """What was found under that name; None where it was not looked at."""
        return next((check.state for check in self.checks if check.name == name), None)

    def ask(self, requests: Sequence[Request], *, lm: LM | None = None) -> list[Reply]:
        """The replies of the model, or of ``lm`` in its place; a refusal to answer at all is a reply with an error.

        Raises:
            BudgetError: where the budget does not cover them.
        """
        asked = lm or self.lm
        try:
            replies = self.purse.anew(requests, lm=asked) if self.purse else asked.complete(requests)
        except ValueError as error:  # a broken set-up: here it is what was to be found out
            replies = [Reply(text="", finish="error", error=str(error)) for _ in requests]
        self.requests += len(requests)
        self.read += sum(reply.usage.prompt_tokens for reply in replies)
        self.written += sum(reply.usage.completion_tokens for reply in replies)
        return replies

    def setting(self, key: str, *, roles: Sequence[str] = ()) -> str:
        """``key`` set for each of the roles, as it is typed: ``target.json=text mutator.writer.model.json=text``."""
        named = ((NODES.get(role, role), "model." if "." in role else "") for role in roles or self.roles)
        return " ".join(f"{node}.{within}{key}" for node, within in named)

    def plays(self, roles: Sequence[str]) -> tuple[str, ...]:
        """Those of its roles that are among these, by the last part of their keys."""
        return tuple(role for role in self.roles if role.rpartition(".")[2] in roles)


def prompt(text: str, *, system: str | None = None) -> tuple[Message, ...]:
    """One user turn, after a system turn where there is one."""
    first = () if system is None else (Message(role="system", content=system),)
    return (*first, Message(role="user", content=text))


def greedy(text: str, *, max_tokens: int = 16, system: str | None = None, logprobs: bool = False) -> Request:
    """A request at temperature 0."""
    messages = prompt(text, system=system)
    return Request(messages=messages, temperature=0.0, max_tokens=max_tokens, logprobs=logprobs)


def sampled(text: str, *, seed: int, max_tokens: int = 16) -> Request:
    """A request at temperature 1."""
    return Request(messages=prompt(text), max_tokens=max_tokens, seed=seed, logprobs=False)


def reachable(patient: Patient) -> bool:
    """Whether one tiny request is answered."""
    start = time.perf_counter()
    reply = patient.ask([greedy(GREETING, max_tokens=4)])[0]
    if reply.error is not None:
        cure = "mend what it says, or choose another model"
        patient.note("reachable", "failed", reply.error, cure=cure)
        return False
    patient.note("reachable", "ok", f"answered {shown(reply.text)} in {time.perf_counter() - start:.2f} s")
    return True


def log_probabilities(patient: Patient, *, lm: LM | None = None, cure: str = "", needed: bool = True) -> None:
    """Are log-probabilities given, finite, at most 0, and one for each token (the end of the turn may lack its own)?"""
    reply = patient.ask([greedy(OPEN, logprobs=True)], lm=lm)[0]
    if reply.error is not None:
        patient.note("logprobs", "ignored", f"refused: {reply.error}", cure=cure, needed=needed)
    elif reply.logprobs is None:
        patient.note("logprobs", "ignored", "asked for, none given", cure=cure, needed=needed)
    else:
        given, tokens = reply.logprobs, reply.usage.completion_tokens
        sound = all(math.isfinite(value) and value <= 0 for value in given) and tokens - len(given) in (0, 1)
        got = f"{len(given)} for {tokens} tokens, {min(given, default=0):.3g} to {max(given, default=0):.3g} nats"
        patient.note("logprobs", "ok" if sound else "failed", got, cure=cure, needed=needed)


def randomness(patient: Patient, *, lm: LM | None = None, cure: str = "") -> None:
    """Is a temperature of 1 drawn at, and does the seed decide the draw?"""
    seeds = [derive(patient.seed, "doctor", i) for i in range(max(patient.effort.repeats, 2))]
    replies = patient.ask([sampled(OPEN, seed=seed) for seed in (*seeds, seeds[0])], lm=lm)
    if fault := first_error(replies):
        patient.note("sampling", "unknown", fault)
        patient.note("seed", "unknown", fault)
        return
    *drawn, again = [reply.text for reply in replies]
    kinds = len(set(drawn))
    got = f"{kinds} different of {len(drawn)} replies at temperature 1, each with its own seed"
    if kinds == 1:
        patient.note("sampling", "ignored", got, cure=cure, needed=bool(patient.plays(TARGETS)))
        patient.note("seed", "unknown", "nothing is drawn, so nothing hangs on a seed")
        return
    patient.note("sampling", "ok", got)
    if again == drawn[0]:
        patient.note("seed", "ok", "the same seed gave the same reply, other seeds gave others")
        return
    alone = [patient.ask([sampled(OPEN, seed=seeds[0])], lm=lm)[0] for _ in range(2)]
    got, cure = "the same seed gave two replies", patient.setting("seed=false")
    if first_error(alone) is None and alone[0].text == alone[1].text:
        got += " among requests in flight together, and one reply to requests one after another"
        cure = f"the engine's concurrency=1 and concurrency_max=1, or {cure}"
    patient.note("seed", "ignored", got, cure=cure)


def steadiness(patient: Patient) -> None:
    """How often do repeats at temperature 0 disagree with the commonest reply?"""
    replies = patient.ask([greedy(STORY, max_tokens=24) for _ in range(patient.effort.repeats)])
    if fault := first_error(replies):
        patient.note("temperature_0", "unknown", fault)
        return
    odd = len(replies) - Counter(reply.text for reply in replies).most_common(1)[0][1]
    got = f"{odd} of {len(replies)} repeats disagree with the commonest ({odd / len(replies):.0%})"
    patient.note(
        "temperature_0", "failed" if odd else "ok", got, cure="judge by majority, or accept that rate of noise"
    )


def ending(patient: Patient) -> None:
    """Is ``max_tokens`` honoured, and is the reason for stopping the true one?"""
    cut, free = patient.ask([greedy(STORY, max_tokens=6), greedy("Answer with one word: yes or no?", max_tokens=64)])
    if fault := first_error([cut, free]):
        patient.note("max_tokens", "unknown", fault)
        patient.note("stop_reason", "unknown", fault)
        return
    n, m = cut.usage.completion_tokens, free.usage.completion_tokens
    patient.note("max_tokens", "ok" if n <= 6 else "ignored", f"{n} tokens where 6 were allowed")
    true = (cut.finish == "length") == (n >= 6) and (m >= 64 or free.finish == "stop")
    got = f"{cut.finish!r} after {n} of 6 tokens, {free.finish!r} after {m} of 64"
    patient.note("stop_reason", "ok" if true else "failed", got)


def pace(patient: Patient, *, price: tuple[float, float] | None) -> None:
    """How fast are full-length replies, and what would a thousand cost (None: the model runs here)?"""
    effort = patient.effort
    requests = [
        sampled(f"{STORY} Let it begin at {hour} o'clock.", seed=hour, max_tokens=effort.max_tokens)
        for hour in range(effort.requests)
    ]
    start = time.perf_counter()
    replies = patient.ask(requests)
    seconds = time.perf_counter() - start
    if fault := first_error(replies):
        patient.note("speed", "unknown", fault)
        return
    written = sum(reply.usage.completion_tokens for reply in replies)
    read = sum(reply.usage.prompt_tokens for reply in replies) / len(replies)
    got = f"{written / seconds:.0f} tokens/s, {seconds / len(replies):.2f} s a request ({len(replies)} at once)"
    patient.note("speed", "ok", got)
    kind = f"1,000 requests of {read:.0f} tokens read and {effort.max_tokens} written"
    if price is None:
        patient.note("price", "ok", "it runs here: none")
    elif any(price):
        dollars = (read * price[0] + effort.max_tokens * price[1]) / 1e6 * 1000
        patient.note("price", "ok", f"${dollars:.4f} for {kind}")
    else:
        patient.note("price", "unknown", f"no price is configured ({kind})")


def first_error(replies: Sequence[Reply]) -> str | None:
    """The first error among the replies, if any."""
    return next((reply.error for reply in replies if reply.error is not None), None)


def shown(text: str, *, limit: int = 160) -> str:
    """A text as one quoted line; of a long one its two ends."""
    return json.dumps(shortened(text, limit=limit), ensure_ascii=False)


def shortened(text: str, *, limit: int) -> str:
    """A text, or of a long one its two ends."""
    half = limit // 2
    return text if len(text) <= limit else f"{text[:half]} … {text[-half:]}"
