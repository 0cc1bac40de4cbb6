"""A served model behind cache and ledger: asked once, kept as it comes, never beyond the budget."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from server import Server

from evorefuse.ledger import Budget, BudgetError, Ledger
from evorefuse.lm.cached import Cached
from evorefuse.ports import LM, Streaming
from evorefuse.records import Message, Reply, Request, Usage, stream
from evorefuse.responses import CacheError, Responses, key_of

ROOT = Path(__file__).parents[1]


@dataclass(kw_only=True)
class Far:
    """A served model: replies in a shuffled order, some errors, some stops. Remembers what it was asked."""

    fails: Mapping[str, str] = field(default_factory=dict)
    stops_after: int | None = None
    loses: str | None = None
    asked: list[Request] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    closed: int = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": "far", "id": "far-1", "system": None}

    @property
    def price(self) -> tuple[float, float]:
        return (1_000_000.0, 0.0)  # a dollar for each token read

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        raise AssertionError("asked past the stream")

    def stream(
        self, requests: Sequence[Request], *, keep: Callable[[int, Reply], None] | None = None
    ) -> Iterator[tuple[int, Reply]]:
        for index, reply in self._answers(requests):
            if keep:
                keep(index, reply)
            yield index, reply

    def drain(self) -> None:
        raise AssertionError("never left alone")

    def _answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        order = list(range(len(requests)))
        stream("order", len(requests)).shuffle(order)
        self.batches.append(len(requests))
        try:
            for n, index in enumerate(order):
                if n == self.stops_after:
                    raise KeyboardInterrupt
                request = requests[index]
                self.asked.append(request)
                if said(request) == self.loses:
                    continue
                if said(request) in self.fails:
                    self.faults["500"] += 8
                    yield index, Reply(text="", finish="error", error=self.fails[said(request)])
                else:
                    usage = Usage(prompt_tokens=10, completion_tokens=1)
                    yield index, Reply(text=f"{said(request)} {request.sample}", finish="stop", usage=usage)
        finally:
            self.closed += 1


def said(request: Request) -> str:
    return request.messages[-1].content


def requests(*texts: str, **changes: Any) -> list[Request]:
    return [Request(messages=(Message(role="user", content=text),), max_tokens=5, **changes) for text in texts]


@pytest.fixture
def responses(tmp_path: Path) -> Iterator[Responses]:
    opened = Responses(tmp_path / "lm.sqlite")
    yield opened
    opened.close()


def cached(lm: Streaming, responses: Responses | None, budget: Budget | None = None) -> tuple[Cached, Ledger]:
    ledger = Ledger(budget)
    ledger.begin("stage")
    return Cached(lm=lm, responses=responses, ledger=ledger), ledger


def test_the_order_is_kept_and_nothing_is_asked_twice(responses):
    far = Far()
    model, ledger = cached(far, responses)
    assert isinstance(model, LM)
    assert model.identity == far.identity
    assert model.lm is far
    texts = [f"text {n}" for n in range(50)]
    assert [reply.text for reply in model.complete(requests(*texts))] == [f"{text} 0" for text in texts]
    again = model.complete(requests("new", *reversed(texts)))
    assert [reply.text for reply in again] == ["new 0", *(f"{text} 0" for text in reversed(texts))]
    assert max(Counter(map(said, far.asked)).values()) == 1
    (entry,) = ledger.entries
    assert (entry.requests, entry.cached_requests, entry.read, entry.usd) == (51, 50, 510, 510.0)
    assert entry.cached_usd == 500.0
    assert model.complete([]) == []


def test_equal_requests_of_one_batch_are_asked_once_but_samples_are_their_own(responses):
    far = Far()
    model, _ = cached(far, responses)
    one = requests("a")[0]
    replies = model.complete([one, replace(one, sample=1), one, replace(one, sample=2), replace(one, sample=1)])
    assert [reply.text for reply in replies] == ["a 0", "a 1", "a 0", "a 2", "a 1"]
    assert len(far.asked) == 3


def test_errors_are_values_and_are_not_kept(responses):
    far = Far(fails={"b": "timed out"})
    model, ledger = cached(far, responses)
    first = model.complete(requests("a", "b", "c"))
    assert [(reply.finish, reply.error) for reply in first] == [("stop", None), ("error", "timed out"), ("stop", None)]
    far.fails = {}
    assert [reply.text for reply in model.complete(requests("a", "b", "c"))] == ["a 0", "b 0", "c 0"]
    (entry,) = ledger.entries
    assert (entry.requests, entry.errors, entry.cached_requests, entry.faults) == (4, 1, 2, {"500": 8})


def test_a_reply_that_never_came_is_an_error(responses):
    model, _ = cached(Far(loses="b"), responses)
    assert [reply.finish for reply in model.complete(requests("a", "b", "c"))] == ["stop", "error", "stop"]


def test_what_came_before_a_stop_is_kept_and_the_rest_is_free_for_others(responses, tmp_path):
    far = Far(stops_after=7)
    texts = [f"text {n}" for n in range(20)]
    with pytest.raises(KeyboardInterrupt):
        cached(far, responses)[0].complete(requests(*texts))
    assert far.closed == 1
    other = Responses(tmp_path / "lm.sqlite")
    fresh = Far()
    replies = cached(fresh, other)[0].complete(requests(*texts))
    assert [reply.text for reply in replies] == [f"{text} 0" for text in texts]
    assert {*map(said, far.asked)} & {*map(said, fresh.asked)} == set()
    assert len(fresh.asked) == 13


def test_without_a_cache_everything_is_asked():
    far = Far()
    model, ledger = cached(far, None)
    for _ in range(2):
        assert [reply.text for reply in model.complete(requests("a", "b", "a"))] == ["a 0", "b 0", "a 0"]
    assert len(far.asked) == 4
    assert ledger.entries[0].cached_requests == 0


def test_a_budget_stops_before_the_request_that_is_not_covered(responses):
    """A request reads 10 tokens at a dollar each; its worst case is its bytes and what a template may add."""
    far = Far()
    texts = [f"text {n:02}" for n in range(40)]
    model, ledger = cached(far, responses, Budget(usd=300.0))
    with pytest.raises(BudgetError, match=r"budget\.usd=300 is spent"):
        model.complete(requests(*texts))
    spent = ledger.entries[0].usd
    assert spent <= 300
    assert spent + 100 > 300, "and no sooner than needed"
    assert far.batches[0] > 1
    before = len(far.asked)
    model, ledger = cached(far, responses, Budget(usd=1000.0))
    assert [reply.text for reply in model.complete(requests(*texts))] == [f"{text} 0" for text in texts]
    assert len(far.asked) == 40
    assert ledger.entries[0].cached_requests == before


def test_what_is_in_the_cache_needs_no_budget(responses):
    cached(Far(), responses)[0].complete(requests("a", "b"))
    model, _ = cached(Far(), responses, Budget(usd=0.0))
    assert [reply.text for reply in model.complete(requests("b", "a"))] == ["b 0", "a 0"]
    with pytest.raises(BudgetError):
        model.complete(requests("a", "c"))


def test_a_request_that_another_asks_is_waited_for(responses, tmp_path):
    far = Far()
    model, _ = cached(far, responses)
    batch = requests("a", "b")
    other = Responses(tmp_path / "lm.sqlite")
    keys = responses_keys(far, batch)
    assert other.claim(keys[:1]) == keys[:1]
    release = threading.Event()

    def answer() -> None:
        theirs = Responses(tmp_path / "lm.sqlite")
        release.wait(10)
        theirs.put(keys[0], Reply(text="theirs", finish="stop"))

    thread = threading.Thread(target=answer)
    thread.start()
    threading.Timer(0.5, release.set).start()
    assert [reply.text for reply in model.complete(batch)] == ["theirs", "b 0"]
    thread.join()
    assert [said(request) for request in far.asked] == ["b"]


def test_one_that_another_gave_up_is_asked_after_all(responses, tmp_path):
    far = Far()
    batch = requests("a", "b")
    other = Responses(tmp_path / "lm.sqlite")
    keys = responses_keys(far, batch)
    other.claim(keys)
    other.release(keys[:1])
    opened = threading.Event()

    def die() -> None:
        opened.wait(10)
        Responses(tmp_path / "lm.sqlite")._transact(("DELETE FROM claims WHERE key = ?", [(keys[1],)]))

    thread = threading.Thread(target=die)
    thread.start()
    threading.Timer(0.3, opened.set).start()
    assert [reply.text for reply in cached(far, responses)[0].complete(batch)] == ["a 0", "b 0"]
    thread.join()
    assert far.batches == [1, 1]


def responses_keys(lm: Streaming, batch: Sequence[Request]) -> list[str]:
    return [key_of(lm.identity, request) for request in batch]


def test_a_damaged_cache_stops_at_once(tmp_path):
    opened = Responses(tmp_path / "lm.sqlite")
    model, _ = cached(Far(), opened)
    model.complete(requests("a"))
    opened._transact(("UPDATE replies SET reply = ?", [("{torn",)]))
    with pytest.raises(CacheError, match="delete it"):
        model.complete(requests("a"))


WORKER = """
import json, random, sys
from pathlib import Path
from evorefuse.ledger import Ledger
from evorefuse.lm.cached import Cached
from evorefuse.lm.endpoint import Endpoint
from evorefuse.lm.openai import OpenAI
from evorefuse.records import Message, Request
from evorefuse.responses import Responses

cache, url, seed = sys.argv[1:]
model = OpenAI(model=Endpoint(name="m", source="served", id="m", base_url=url, json="text"))
lm = Cached(lm=model, responses=Responses(Path(cache)), ledger=Ledger())
batch = [Request(messages=(Message(role="user", content=f"text {n}"),), max_tokens=20) for n in range(120)]
random.Random(seed).shuffle(batch)
said = {}
for start in range(0, len(batch), 30):
    some = batch[start:start + 30]
    said |= {r.messages[-1].content: a.text for r, a in zip(some, lm.complete(some))}
print(json.dumps([said, sum(e.requests for e in lm._ledger.entries)], sort_keys=True))
"""


def test_processes_at_once_on_one_cache_pay_for_nothing_twice_and_read_the_same(tmp_path):
    with Server(delay=0.01, faults=0.1, kinds=("429", "500", "cut")) as server:
        command = [sys.executable, "-c", WORKER, str(tmp_path / "lm.sqlite"), server.url]
        workers = [
            subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for n in range(3)
        ]
        ends = [worker.communicate(timeout=300) for worker in workers]
        assert [error for _, error in ends] == [""] * 3
        found = [json.loads(out) for out, _ in ends]
        assert found[0][0] == found[1][0] == found[2][0]
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == 120 == sum(paid for _, paid in found)
