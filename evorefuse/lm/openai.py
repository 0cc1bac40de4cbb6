"""The engine for served models: any OpenAI-compatible server, asked with care and without losing a reply."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar
from urllib.parse import urlsplit

import anyio
import httpx2
import openai
from anyio.from_thread import start_blocking_portal
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from evorefuse.lm.endpoint import Endpoint, EndpointError
from evorefuse.lm.transport import Closed, Fault, Lane, Traffic, retry_after
from evorefuse.lm.wire import body_of, is_filtered, read_error, reply_of, set_up_fault, summary, weight
from evorefuse.records import Reply, Request

Keep = Callable[[int, Reply], None]

FIRST_TRIES = 3  # attempts at a host that has never answered, before the run stops
TRIED_AGAIN = (408, 409, 425, 429)  # and every status from 500
OUTAGE = 8  # different prompts in a batch of which not one was answered in all attempts: no longer their own fault
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class OpenAI:
    """A model behind an OpenAI-compatible server.

    At first ``concurrency`` requests are in flight and never more than ``concurrency_max``: more while all goes well,
    half as many when the server says 429. ``requests_per_minute`` and ``tokens_per_minute`` are what the server permits
    (None: unlimited; a request's tokens are taken to be a third of its letters plus the longest reply). One attempt may
    take ``deadline`` seconds, body included; one that fails is made again, ``attempts`` in all, after growing waits of
    at most ``wait_max`` seconds. A Retry-After pauses all sending, for at most ``wait_max`` seconds too.

    Log-probabilities are those that the server gives: of the sampled tokens, mostly without the end of the text.
    """

    TRANSPORT: ClassVar[frozenset[str]] = frozenset(
        {
            "concurrency",
            "concurrency_max",
            "requests_per_minute",
            "tokens_per_minute",
            "deadline",
            "attempts",
            "wait_max",
        }
    )

    def __init__(
        self,
        *,
        model: Endpoint,
        concurrency: int = 4,
        concurrency_max: int = 64,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        deadline: float = 120.0,
        attempts: int = 8,
        wait_max: float = 60.0,
    ) -> None:
        """Check the limits; nothing is sent yet.

        Raises:
            ValueError: for a limit that lets nothing through.
        """
        positive = {"deadline": deadline, "wait_max": wait_max, "requests_per_minute": requests_per_minute}
        for name, value in {**positive, "tokens_per_minute": tokens_per_minute}.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0, got {value!r}")
        if not 1 <= concurrency <= concurrency_max or attempts < 1:
            raise ValueError(
                f"1 ≤ concurrency ≤ concurrency_max and 1 ≤ attempts must hold, got {concurrency}, {concurrency_max} "
                f"and {attempts}"
            )
        self.spec = model
        self._deadline, self._attempts, self._wait_max = deadline, attempts, wait_max
        self._workers = concurrency_max
        self._traffic = Traffic(
            concurrency=concurrency,
            concurrency_max=concurrency_max,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            wait_max=wait_max,
        )
        self._faults: Counter[str] = Counter()
        self._answered = False

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that changes a reply besides the Request; never the address or the key."""
        spec = self.spec
        return {
            "name": spec.name,
            "source": spec.source,
            "id": spec.id,
            "system": spec.system,
            "logprobs": spec.logprobs,
            "seed": spec.seed,
            "top_k": spec.top_k,
            "json": spec.json,
            "max_tokens_key": spec.max_tokens_key,
            "extra": dict(spec.extra),
        }

    @property
    def price(self) -> tuple[float, float]:
        """US dollars a million tokens, read and written."""
        return self.spec.price.read, self.spec.price.written

    @property
    def faults(self) -> Mapping[str, int]:
        """How many attempts failed so far, by cause: a status such as 429, cut, timeout, malformed, choices."""
        return dict(self._faults)

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            EndpointError: where no request can succeed (key, model, address, a field that the server refuses).
        """
        replies = dict(self.stream(requests))
        return [replies[index] for index in range(len(requests))]

    def stream(self, requests: Sequence[Request], *, keep: Keep | None = None) -> Iterator[tuple[int, Reply]]:
        """Each request's index and reply, as they arrive; closing the iterator cancels what is still open.

        ``keep`` is called with the same first, in the thread that read the reply.

        Raises:
            EndpointError: where no request can succeed (key, account, model, address, a field that the server refuses).
                Nothing is sent from then on, but what is in flight will be billed: it arrives before the error. Also
                where a batch of many prompts got no answer at all: a search that went on would take it for a verdict.
        """
        if not requests:
            return
        arrived: SimpleQueue[tuple[int, Reply] | None] = SimpleQueue()
        with start_blocking_portal() as portal:
            running = portal.start_task_soon(self._ask_all, requests, arrived, keep)
            while (item := arrived.get()) is not None:
                yield item
            running.result()  # raises what ended it; leaving the portal by an exception cancels it

    def drain(self) -> None:
        """Send nothing more, from any thread; what is in flight is still read."""
        self._traffic.closed = True

    async def _ask_all(
        self, requests: Sequence[Request], arrived: SimpleQueue[tuple[int, Reply] | None], keep: Keep | None
    ) -> None:
        """Put each reply on the queue as it comes, and at the end None."""
        waiting = iter(enumerate(requests))
        lane = Lane(self._traffic)
        hopeless: list[EndpointError] = []

        async def work(client: openai.AsyncOpenAI) -> None:
            for index, request in waiting:
                try:
                    reply = await self._ask(client, lane, request)
                except Closed:
                    return
                except EndpointError as error:  # raised here, it would cancel what is in flight
                    lane.close()
                    hopeless.append(error)
                    return
                if keep is not None:
                    keep(index, reply)
                arrived.put((index, reply))

        try:
            async with self._client() as client, anyio.create_task_group() as group:
                for _ in range(min(len(requests), self._workers)):
                    group.start_soon(work, client)
            if hopeless:
                raise hopeless[0]
            if lane.lost == len(requests) and len({request.messages for request in requests}) >= OUTAGE:
                raise EndpointError(
                    f"{self.spec.base_url} answered none of {len(requests)} requests, each tried {self._attempts} "
                    f"times ({dict(self._faults)} so far): it is out of order. The same command asks them again."
                )
        except BaseExceptionGroup as failed:
            raise _first(failed) from None
        finally:
            arrived.put(None)

    def _client(self) -> openai.AsyncOpenAI:
        url = self.spec.base_url
        timeout = httpx2.Timeout(self._deadline, connect=min(10.0, self._deadline))
        direct = urlsplit(url).hostname in LOOPBACK  # a proxy cannot reach this machine's own servers
        http = openai.DefaultAsyncHttpxClient(trust_env=not direct, timeout=timeout)
        client = openai.AsyncOpenAI(
            api_key=self.spec.secret() or "none", base_url=url, max_retries=0, timeout=timeout, http_client=http
        )
        if urlsplit(url).hostname != "api.openai.com":
            client.organization = client.project = None  # the environment's, and nobody else's business
        return client

    async def _ask(self, client: openai.AsyncOpenAI, lane: Lane, request: Request) -> Reply:
        """A reply, or after the last attempt an error; never an exception but where no request can succeed."""
        retrying = AsyncRetrying(
            stop=self._is_last,
            wait=self._pause,
            retry=retry_if_exception_type(Fault),
            sleep=lane.sleep,
            reraise=True,
        )
        body = body_of(request, self.spec)
        try:
            return await retrying(self._attempt, client, lane, body)
        except Fault as fault:
            if fault.cause == "unreachable" and not self._answered:
                raise EndpointError(
                    f"{self.spec.base_url} never answered ({fault}). Is the server of model {self.spec.name!r} "
                    f"running, and is base_url its address?"
                ) from None
            lane.lost += 1
            told = self._clean(str(fault))
            return Reply(text="", finish="error", error=f"{fault.cause}, {self._attempts} attempts: {told}")
        except UnicodeEncodeError:
            return Reply(text="", finish="error", error="the request holds half a letter, which no server can be sent")

    def _is_last(self, state: RetryCallState) -> bool:
        fault = state.outcome.exception() if state.outcome else None
        unknown = isinstance(fault, Fault) and fault.cause == "unreachable" and not self._answered
        return state.attempt_number >= (min(FIRST_TRIES, self._attempts) if unknown else self._attempts)

    def _pause(self, state: RetryCallState) -> float:
        """Seconds before the next attempt; 0 where the server named its own, which the lane then keeps for all."""
        fault = state.outcome.exception() if state.outcome else None
        if isinstance(fault, Fault) and fault.retry_after is not None:
            return 0.0
        return wait_random_exponential(multiplier=0.5, max=self._wait_max)(state)

    async def _attempt(self, client: openai.AsyncOpenAI, lane: Lane, body: dict[str, Any]) -> Reply:
        async with lane.slot(weight(body)):
            try:
                return self._read(await self._post(client, body), body)
            except Fault as fault:
                self._faults[fault.cause] += 1
                raise

    async def _post(self, client: openai.AsyncOpenAI, body: dict[str, Any]) -> httpx2.Response:
        """The server's response, whatever its status.

        Raises:
            Fault: where none came.
        """
        try:
            with anyio.fail_after(self._deadline):
                response = await client.post("/chat/completions", cast_to=httpx2.Response, body=body)
        except openai.APIStatusError as error:
            response = error.response
        except (TimeoutError, openai.APIConnectionError) as error:
            raise self._lost(error) from None
        self._answered = True
        return response

    def _lost(self, error: Exception) -> Fault:
        cause = error.__cause__
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
            return Fault("unreachable", self._clean(str(cause) or type(cause).__name__))
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            return Fault("timeout", f"no whole reply within {self._deadline:g} s")
        return Fault("cut", f"the connection broke: {type(cause).__name__}")

    def _read(self, response: httpx2.Response, body: dict[str, Any]) -> Reply:
        """The reply in a response.

        Raises:
            Fault: for what may go better the next time.
            EndpointError: for what cannot.
        """
        status = response.status_code
        if status == 200:
            return reply_of(response.text, body=body)
        payload = read_error(response.text)
        told = self._clean(summary(payload))
        if is_filtered(status, payload):
            return Reply(text="", finish="blocked")
        hopeless = set_up_fault(status, payload, told, endpoint=self.spec, body=body)
        if hopeless is not None:
            raise hopeless
        if status in TRIED_AGAIN or status >= 500:
            raise Fault(str(status), told, retry_after=retry_after(response.headers))
        self._faults[str(status)] += 1
        return Reply(text="", finish="error", error=f"{status}: {told}")

    def _clean(self, text: str) -> str:
        """``text`` without the key, were it quoted."""
        key = self.spec.secret()
        return text.replace(key, "…") if key else text


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first exception of a group that is none itself."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
