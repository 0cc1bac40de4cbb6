"""What a server bears: how much is sent at once, how much a minute, and when to wait.

The limits are kept here and not by a library's limiter: those belong to one event loop and start with a full bucket,
while a run asks in many short batches that share one limit, and one request may be larger than a bucket.
"""

import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import anyio

SLACK = 0.25  # seconds that late wake-ups may be made up for; servers' own buckets hold a second or more
STEP = 0.2  # seconds between two looks, while waiting, at whether anything is still to be sent
PAUSE = 1.0  # seconds of silence after a 429 that names no time


class Fault(Exception):  # noqa: N818  (it is an outcome that is tried again)
    """An attempt that failed and may be made again; ``cause`` is a status or a word, for counting."""

    def __init__(self, cause: str, message: str, *, retry_after: float | None = None) -> None:
        """Keep the cause, what was seen, and the seconds that the server asked to wait."""
        super().__init__(message)
        self.cause = cause
        self.retry_after = retry_after


def retry_after(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """The seconds (0 or more) that a server asks to wait, from a number or an HTTP date; None where it says nothing."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        until = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - (now or datetime.now(UTC))).total_seconds())


class Closed(Exception):  # noqa: N818  (nothing went wrong)
    """The lane, or all traffic, was closed before a request was sent."""


class Traffic:
    """One server's limits and how it bears them; it outlives a stream, so that batches share one limit.

    The width (requests in flight) grows by one with each reply until the server first complains, from then on by one a
    round trip; a complaint halves it, once for all requests that were on their way together, and silences all sending
    for as long as the server asks.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        concurrency_max: int,
        requests_per_minute: float | None,
        tokens_per_minute: float | None,
        wait_max: float,
    ) -> None:
        """Start at ``concurrency`` requests in flight; no pause is longer than ``wait_max`` seconds."""
        self.width = float(concurrency)
        self.closed = False  # True: nothing more is sent
        self._widest = float(concurrency_max)
        self._request_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_seconds = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._wait_max = wait_max
        self._complained = -math.inf
        self._silent_until = -math.inf
        self._requests_free = -math.inf
        self._tokens_free = -math.inf

    def wait(self) -> float:
        """The seconds until the next request may be sent; 0 or less: now."""
        return max(self._silent_until, self._requests_free, self._tokens_free) - time.monotonic()

    def spend(self, tokens: float) -> None:
        """Count a request of ``tokens`` tokens as sent now."""
        earliest = time.monotonic() - SLACK
        self._requests_free = max(self._requests_free, earliest) + self._request_seconds
        self._tokens_free = max(self._tokens_free, earliest) + tokens * self._token_seconds

    def grow(self) -> None:
        """Take a reply as a sign that the server bears more."""
        step = 1.0 if self._complained == -math.inf else 1 / self.width
        self.width = min(self._widest, self.width + step)

    def shrink(self, fault: Fault, *, sent: float) -> None:
        """Take a fault of a request that was sent at ``sent`` as a complaint, where it is one."""
        if fault.cause != "429" and fault.retry_after is None:
            return
        now = time.monotonic()
        pause = fault.retry_after
        if sent > self._complained:
            self.width = max(1.0, self.width / 2)
            self._complained = now
            pause = PAUSE if pause is None else pause
        self._silent_until = max(self._silent_until, now + min(pause or 0.0, self._wait_max))


class Lane:
    """One stream's way through the traffic; it belongs to one event loop."""

    def __init__(self, traffic: Traffic) -> None:
        """Open as wide as the traffic bears now; ``lost`` counts the requests that failed in all attempts."""
        self._traffic = traffic
        self._slots = anyio.CapacityLimiter(int(traffic.width))
        self._head = anyio.Lock()
        self._ended = False
        self.lost = 0

    @property
    def closed(self) -> bool:
        """Whether nothing more is sent, in this stream or in any."""
        return self._ended or self._traffic.closed

    def close(self) -> None:
        """Send nothing more in this stream: who waits for a slot, a pause or a retry gives up, others end well."""
        self._ended = True

    async def sleep(self, seconds: float) -> None:
        """Wait, but not on after the lane was closed."""
        until = time.monotonic() + seconds
        while not self.closed and (rest := until - time.monotonic()) > 0:
            await anyio.sleep(min(rest, STEP))

    @asynccontextmanager
    async def slot(self, tokens: float) -> AsyncGenerator[None]:
        """A place among those in flight, from when the limits allow a request of ``tokens`` tokens to be sent.

        How the body ends, well or by a Fault, is what the traffic learns from.

        Raises:
            Closed: where nothing more is to be sent.
        """
        async with self._slots:
            async with self._head:  # first come, first served, and a pause holds all who stand behind
                while not self.closed and (seconds := self._traffic.wait()) > 0:
                    await self.sleep(seconds)
                if self.closed:
                    raise Closed
                self._traffic.spend(tokens)
            sent = time.monotonic()
            try:
                yield
            except Fault as fault:
                self._traffic.shrink(fault, sent=sent)
                raise
            else:
                self._traffic.grow()
            finally:
                self._slots.total_tokens = int(self._traffic.width)
