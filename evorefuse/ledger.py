"""The ledger: what was asked of each served model in each stage, what it cost, and whether more may be asked.

`ledger.json` in the run folder, written anew as replies come (at most once a second) and read by a resumed run and by
the report: {"schema": 1, "seconds": …, "budget": {"usd", "tokens", "minutes"}, "entries": [one Entry each]}.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evorefuse.records import Reply, Request
from evorefuse.store import Store, decode, read_json

FILE = "ledger.json"
SCHEMA = 1
_OVERHEAD = 64  # tokens that a chat template may add to a prompt
_OVERHEAD_A_TURN = 8  # tokens around each turn
_SLICE = 64  # requests sent at a time where minutes are counted: the end comes between slices, so nothing paid is lost
_EVERY = 1.0  # seconds between two writings


class BudgetError(RuntimeError):
    """The budget does not cover the next request; what was done is safe, and a larger budget goes on from there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that one run (one cell of a sweep) may use, resumed runs counted together; None: no limit.

    ``usd`` dollars and ``tokens`` (read + written) count what served models are asked, cached replies not; ``minutes``
    is the time that the run has taken, looked at between requests to served models and between stages.
    """

    usd: float | None = None
    tokens: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        """Refuse a negative limit."""
        for name in ("usd", "tokens", "minutes"):
            if (limit := getattr(self, name)) is not None and not limit >= 0:
                raise ValueError(f"budget.{name} must be a number from 0 up, or null for no limit; got {limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one stage asked of one model: requests sent and answered from the cache, tokens, US dollars.

    ``errors`` counts the requests that ended in an error, ``faults`` what went wrong on the way by cause, retries that
    succeeded in the end included. ``cached_usd`` is what the cached replies would have cost.
    """

    stage: str
    model: str
    requests: int = 0
    read: int = 0
    written: int = 0
    usd: float = 0.0
    cached_requests: int = 0
    cached_read: int = 0
    cached_written: int = 0
    cached_usd: float = 0.0
    errors: int = 0
    faults: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Tokens read and written, and US dollars; ``price`` is dollars a million tokens, read and written."""

    read: int
    written: int
    usd: float

    @classmethod
    def of(cls, read: int, written: int, *, price: tuple[float, float]) -> "Cost":
        """The cost of so many tokens."""
        return cls(read=read, written=written, usd=(read * price[0] + written * price[1]) / 1e6)

    @classmethod
    def worst(cls, request: Request, *, price: tuple[float, float], system: str = "") -> "Cost":
        """The most that one answer to ``request`` can cost: a token is at least one byte of UTF-8."""
        return cls.of(prompt_bytes(request, system=system) + _overhead(request), request.max_tokens, price=price)

    @classmethod
    def likely(cls, request: Request, *, price: tuple[float, float], system: str = "") -> "Cost":
        """A cost on the high side: three bytes a token, an answer of full length."""
        tokens = prompt_bytes(request, system=system) // 3 + _overhead(request)
        return cls.of(tokens, request.max_tokens, price=price)


def prompt_bytes(request: Request, *, system: str = "") -> int:
    """The bytes of all that is sent with a request: its turns, its schema, and the model's system prompt."""
    texts = [system, request.schema or "", *(turn.content for turn in request.messages)]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _overhead(request: Request) -> int:
    return _OVERHEAD + _OVERHEAD_A_TURN * len(request.messages)


class Ledger:
    """What one run has asked so far, by stage and model; refuses what the budget does not cover.

    With a ``store`` it goes on from the `ledger.json` there and keeps it up to date. ``clock`` gives seconds.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin, or go on from what ``store`` holds.

        Raises:
            ValueError: where the file there cannot be read, naming it.
        """
        self.budget = budget or Budget()
        self.stage = ""
        self._store = store
        self._clock = clock
        self._entries: dict[tuple[str, str], Entry] = {}
        self._before = 0.0
        if store is not None:
            entries, self._before = _recall(store.folder)
            self._entries = {(entry.stage, entry.model): entry for entry in entries}
        self._start = self._saved = clock()

    @property
    def entries(self) -> list[Entry]:
        """One entry a stage and model, in the order in which they were first asked."""
        return list(self._entries.values())

    @property
    def seconds(self) -> float:
        """How long this run has taken, earlier parts of it included."""
        return self._before + self._clock() - self._start

    def begin(self, stage: str) -> None:
        """Count what follows for ``stage``.

        Raises:
            BudgetError: where the minutes are over.
        """
        self.stage = stage
        self.save()
        self.expect_time()

    def expect_time(self) -> None:
        """Refuse to go on where the minutes are over.

        Raises:
            BudgetError: naming the limit.
        """
        if self.budget.minutes is not None and self.seconds >= 60 * self.budget.minutes:
            self._refuse("minutes", f"this run has taken {self.seconds / 60:.3g} minutes")

    def affordable(self, worst: Sequence[Cost]) -> int:
        """How many of the first requests may be sent together: the sum of their worst cases is covered.

        Raises:
            BudgetError: where not even the first is covered, or the minutes are over.
        """
        self.expect_time()
        most = len(worst) if self.budget.minutes is None else min(len(worst), _SLICE)
        usd = sum(entry.usd for entry in self._entries.values())
        tokens = sum(entry.read + entry.written for entry in self._entries.values())
        for n, cost in enumerate(worst[:most]):
            if self.budget.usd is not None and usd + cost.usd > self.budget.usd:
                if not n:
                    self._refuse("usd", f"${usd:.4f} used, and the next request may cost up to ${cost.usd:.4f}")
                return n
            if self.budget.tokens is not None and tokens + cost.read + cost.written > self.budget.tokens:
                if not n:
                    next_one = f"the next request may take up to {cost.read + cost.written:,}"
                    self._refuse("tokens", f"{tokens:,} used, and {next_one}")
                return n
            usd, tokens = usd + cost.usd, tokens + cost.read + cost.written
        return most

    def add(self, model: str, reply: Reply, *, price: tuple[float, float], cached: bool = False) -> None:
        """Count one reply of ``model``."""
        cost = Cost.of(reply.usage.prompt_tokens, reply.usage.completion_tokens, price=price)
        self.count(model, cost, cached=cached, failed=reply.finish == "error")

    def count(self, model: str, cost: Cost, *, cached: bool = False, failed: bool = False) -> None:
        """Count one request to ``model`` that cost so much."""
        old = self._entry(model)
        if cached:
            new = replace(
                old,
                cached_requests=old.cached_requests + 1,
                cached_read=old.cached_read + cost.read,
                cached_written=old.cached_written + cost.written,
                cached_usd=old.cached_usd + cost.usd,
            )
        else:
            new = replace(
                old,
                requests=old.requests + 1,
                read=old.read + cost.read,
                written=old.written + cost.written,
                usd=old.usd + cost.usd,
                errors=old.errors + failed,
            )
        self._entries[self.stage, model] = new
        if self._clock() - self._saved >= _EVERY:
            self.save()

    def fault(self, model: str, causes: Mapping[str, int]) -> None:
        """Count what went wrong on the way to replies of ``model``, by cause."""
        if causes := {cause: n for cause, n in causes.items() if n > 0}:
            old = self._entry(model)
            self._entries[self.stage, model] = replace(old, faults=_sum(old.faults, causes))

    def save(self) -> None:
        """Write the file, where there is a folder for it."""
        self._saved = self._clock()
        if self._store is not None:
            whole = {"schema": SCHEMA, "seconds": self.seconds, "budget": self.budget, "entries": self.entries}
            self._store.write_json(FILE, whole)

    def _entry(self, model: str) -> Entry:
        return self._entries.get((self.stage, model)) or Entry(stage=self.stage, model=model)

    def _refuse(self, limit: str, state: str) -> None:
        self.save()
        raise BudgetError(
            f"budget.{limit}={getattr(self.budget, limit):g} is spent: {state}; raise budget.{limit} and run the same "
            "command again to go on"
        )


def read(folder: Path) -> list[Entry]:
    """What the run in ``folder`` has asked so far, by stage and model; empty where it asked no served model.

    Raises:
        ValueError: where its file cannot be read, naming it.
    """
    return _recall(folder)[0]


def _recall(folder: Path) -> tuple[list[Entry], float]:
    """The entries of a run, and the seconds that it has taken."""
    path = folder / FILE
    if not path.exists():
        return [], 0.0
    whole: Any = read_json(path)
    try:
        return decode(list[Entry], whole["entries"]), float(whole["seconds"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); delete it; what was spent then counts as 0"
        ) from error


def totals(entries: Sequence[Entry]) -> dict[str, Entry]:
    """The sums of all stages, by model."""
    found: dict[str, Entry] = {}
    for entry in entries:
        old = found.get(entry.model, Entry(stage="", model=entry.model))
        sums = {
            name: getattr(old, name) + getattr(entry, name)
            for name in Entry.__dataclass_fields__
            if name not in ("stage", "model", "faults")
        }
        found[entry.model] = Entry(stage="", model=entry.model, faults=_sum(old.faults, entry.faults), **sums)
    return found


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    return {cause: first.get(cause, 0) + second.get(cause, 0) for cause in {**first, **second}}


def line(entry: Entry) -> str:
    """One line for people: requests, tokens, dollars, the same from the cache, and what went wrong."""
    tokens = _tokens(entry.read + entry.written)
    parts = [f"{entry.model}: {entry.requests:,} requests, {tokens}, {_dollars(entry.usd)}"]
    if entry.cached_requests:
        parts.append(f" (cached: {entry.cached_requests:,} requests, {_dollars(entry.cached_usd)})")
    if entry.errors:
        parts.append(f", {entry.errors:,} errors")
    if entry.faults:
        parts.append("; on the way " + ", ".join(f"{n} × {cause}" for cause, n in sorted(entry.faults.items())))
    return "".join(parts)


def _tokens(n: int) -> str:
    return f"{n} tokens" if n < 1000 else f"{n / 1000:.0f}k tokens" if n < 1e6 else f"{n / 1e6:.2f}M tokens"


def _dollars(usd: float) -> str:
    return f"${usd:.2f}" if usd >= 0.1 or usd == 0 else f"${usd:.4f}"
