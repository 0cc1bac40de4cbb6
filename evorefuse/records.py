"""Frozen records: what is put to a model, what comes back, and what is thought of it.

This room imports the standard library alone. Every other room speaks in these nouns.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")

Finish = Literal["stop", "length", "blocked", "error"]
Label = Literal["full", "partial", "compliance", "other", "safe", "debatable", "unsafe", "unscored"]


def content_id(text: str) -> str:
    """The id of a text: the first 16 hexadecimal digits of its SHA-256, so equal texts share caches and lineage."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def derive(*keys: object) -> int:
    """A 63-bit seed that depends on ``keys`` alone: derived, never carried, so a resumed run is the same run."""
    digest = hashlib.sha256("\x1f".join(str(key) for key in keys).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(*keys: object) -> random.Random:
    """A random number generator seeded by ``derive(*keys)``."""
    return random.Random(derive(*keys))


def subset(items: Sequence[T], size: int, *keys: object) -> list[T]:
    """``size`` of ``items`` in their order, drawn with ``stream(*keys)``; all of them where size is 0 or too large."""
    if not 0 < size < len(items):
        return list(items)
    return [items[index] for index in sorted(stream(*keys).sample(range(len(items)), size))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """A text that is put to a model, with where it came from.

    ``trail`` names every edit from the seed to here, oldest first, each ``strategy/pattern``; it is empty for a seed.
    A child of two parents carries both trails, so a mutator can avoid repeating itself within one lineage.
    """

    text: str
    seed_id: str = ""
    parents: tuple[str, ...] = ()
    trail: tuple[str, ...] = ()
    source: str = ""
    reason: str = ""

    @property
    def id(self) -> str:
        """The content hash of the text (16 hexadecimal digits)."""
        return content_id(self.text)

    @property
    def op(self) -> str:
        """The last edit, ``strategy/pattern``, or ``seed``."""
        return self.trail[-1] if self.trail else "seed"

    @property
    def strategy(self) -> str:
        """The strategy of the last edit, such as ``violent_words``, ``recombine`` or ``seed``."""
        return self.op.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """All that changes a reply. ``sample`` tells apart repeats of one prompt; ``seed`` drives the sampling.

    ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch those filters off; ``max_tokens`` counts new tokens.
    ``schema`` is the JSON schema (canonical JSON text) that the reply should follow; a model that cannot be held to one
    ignores it.
    """

    messages: tuple[Message, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 50
    seed: int = 0
    sample: int = 0
    logprobs: bool = True
    schema: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens read and written by one reply."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A model's reply.

    ``logprobs`` are natural-log probabilities of the sampled tokens (nats per token, raw p_θ, EOS included), or None
    where the model gives none. ``entropy`` is H(q) at each of those tokens (nats), when asked for.
    A failed request is a value too: ``finish="error"`` with ``error`` set.
    """

    text: str
    finish: Finish
    logprobs: tuple[float, ...] | None = None
    entropy: tuple[float, ...] | None = None
    usage: Usage = Usage()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What a scorer sees: an instruction and a reply to it. Without a reply the instruction itself is judged."""

    instruction: Instruction
    reply: Reply | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A scorer's judgement of one exchange.

    ``value`` is a probability in [0, 1]: that the reply refuses (role `refusal`, full or partial), or that the
    instruction is harmless (role `safety`). None means unscored, with the cause in ``error``; it is never a 0.
    """

    scorer: str
    label: Label
    value: float | None
    why: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """F(x) and its parts (EVOREFUSE §3.2, eq. 5), all in nats; ``value`` = log_refusal + λ·log_confidence.

    ``log_refusal`` is the mean of log p̂(r|y) and ``log_confidence`` the mean token log-probability (unscaled; None
    where the target gives no log-probabilities) over ``n`` scored samples; ``n_unscored`` were left out.
    """

    value: float | None
    log_refusal: float | None = None
    log_confidence: float | None = None
    n: int = 0
    n_unscored: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A mutator's offer: a new instruction with its reason, or the error that kept it from one."""

    op: str
    instruction: Instruction | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An instruction with what was judged and measured of it."""

    instruction: Instruction
    safety: Verdict
    fitness: Fitness


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One iteration of a chunk of lineages: one journal line, and the whole resumable state.

    ``t`` is -1 for the seeds, then 0 … I-1; ``tau`` the annealing temperature; ``current`` and ``best`` hold one
    candidate a lineage, in the order of the seeds; ``stale`` for how many iterations each lineage has kept its current
    one; ``proposed`` every candidate that was scored in this step. ``n_unsafe`` offers were judged not harmless,
    ``n_unjudged`` got no verdict, and ``n_failed`` were no new text.
    """

    t: int
    tau: float
    current: tuple[Candidate, ...]
    best: tuple[Candidate, ...]
    proposed: tuple[Candidate, ...] = ()
    stale: tuple[int, ...] = ()
    n_unsafe: int = 0
    n_unjudged: int = 0
    n_failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One row of a benchmark: sample ``sample`` of an exchange, the verdicts on it, and the sets it belongs to."""

    sets: tuple[str, ...]
    sample: int
    exchange: Exchange
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A training example: SFT without ``rejected``, DPO with it. ``kind`` names why it is there."""

    instruction: str
    chosen: str
    rejected: str | None = None
    kind: str = ""
    system: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measured figure with its interval (95 % unless said otherwise) and what it rests on."""

    value: float | None
    n: int
    n_unscored: int = 0
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a stage returns and a tracker logs: metrics by name, such as ``seeds/refused``."""

    stage: str
    metrics: dict[str, Metric]
    notes: tuple[str, ...] = ()
