"""The ports: one small Protocol per decision. Batch in, batch out; length and order are kept.

A failed item is a value (``error`` set), never an exception and never a 0. A broken set-up is an exception at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evorefuse.records import Exchange, Fitness, Instruction, Message, Proposal, Reply, Request, Summary, Verdict


@runtime_checkable
class LM(Protocol):
    """A language model, whatever its part: target, writer of a mutator, judge."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that changes a reply besides the Request: model, revision, adapter hash, template hash, dtype."""
        ...

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order. The batch is the unit of determinism: same batch, same replies."""
        ...


@runtime_checkable
class Streaming(LM, Protocol):
    """A model behind a network: replies arrive one by one, cost money, and do not depend on their batch.

    Its class's parameters are plain values or records of such, since another process builds it again from them.
    """

    @property
    def price(self) -> tuple[float, float]:
        """US dollars a million tokens, read and written; (0, 0) where it is free or unknown."""
        ...

    def stream(
        self, requests: Sequence[Request], *, keep: Callable[[int, Reply], None] | None = None
    ) -> Iterator[tuple[int, Reply]]:
        """Each request's index and reply, as they arrive; closing the iterator cancels what is still open.

        ``keep`` is called with the same at the very moment of arrival, maybe in another thread: a process that dies
        between the two has lost what it paid for.
        """
        ...

    def drain(self) -> None:
        """Send nothing more, from any thread; what is in flight is still read, and a stream ends without the rest."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Texts as points whose closeness is closeness of meaning."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, D], one a text, in order; a text's vector does not depend on the others."""
        ...


@runtime_checkable
class Likelihood(Protocol):
    """A white-box model: exact probabilities."""

    def log_prob(self, prompts: Sequence[tuple[Message, ...]], openings: Sequence[str]) -> list[float]:
        """Exact log p_θ(opening | prompt) in nats, one for each pair, by one forward pass."""
        ...


@runtime_checkable
class Mutator(Protocol):
    """Writes new instructions from old ones. Deterministic given ``seed``; items do not depend on their batch."""

    def mutate(self, parents: Sequence[Instruction], *, seed: int) -> list[list[Proposal]]:
        """For each parent one proposal a strategy (EVOREFUSE §3.3, nine strategies in three families)."""
        ...

    def recombine(self, pairs: Sequence[tuple[Instruction, Instruction]], *, seed: int) -> list[Proposal]:
        """One child a pair: the salient parts of both parents in one instruction."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A judge, of safety or of refusal."""

    @property
    def name(self) -> str:
        """The name that its verdicts carry."""
        ...

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """One verdict an exchange, in order; unscored with a cause where it cannot tell."""
        ...


@runtime_checkable
class FitnessEstimator(Protocol):
    """Estimates F(x), higher for instructions that the target refuses more surely."""

    def estimate(self, instructions: Sequence[Instruction], *, seed: int) -> list[Fitness]:
        """One fitness an instruction, in order."""
        ...


@runtime_checkable
class Source(Protocol):
    """A set of instructions."""

    def load(self) -> list[Instruction]:
        """The set, in order, without duplicates.

        Raises:
            FileNotFoundError: where it does not exist, with how to get it.
            ValueError: where nothing usable is in it.
        """
        ...


@runtime_checkable
class Tracker(Protocol):
    """Mirrors what a run writes to people's dashboards; our own files stay the truth."""

    def start(self, *, name: str, config: Mapping[str, Any], folder: str) -> None:
        """Open one run for this job."""
        ...

    def log(self, namespace: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Log numbers under ``namespace/``; ``step`` counts within that namespace."""
        ...

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table."""
        ...

    def summary(self, summary: Summary) -> None:
        """Log a stage's metrics."""
        ...

    def artifact(self, name: str, kind: str, paths: Sequence[str]) -> None:
        """Log files."""
        ...

    def finish(self) -> None:
        """Close the run; safe to call twice."""
        ...
