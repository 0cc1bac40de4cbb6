"""The process that asks: what it is told to ask is stored, whatever becomes of the one that told it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from server import Server

from evorefuse.ledger import Ledger
from evorefuse.lm.asker import Asker, build, recipe
from evorefuse.lm.cached import Cached
from evorefuse.lm.endpoint import Endpoint, EndpointError, Price
from evorefuse.lm.openai import OpenAI
from evorefuse.records import Message, Reply, Request
from evorefuse.responses import Responses, key_of

ROOT = Path(__file__).parents[1]


def endpoint(url: str, **changes: object) -> Endpoint:
    return Endpoint(name="m", source="served", id="m", base_url=url, **changes)


def requests(n: int) -> list[Request]:
    return [Request(messages=(Message(role="user", content=f"text {i}"),), max_tokens=20) for i in range(n)]


def keyed(url: str, n: int) -> dict[str, Request]:
    identity = OpenAI(model=endpoint(url)).identity
    return {key_of(identity, request): request for request in requests(n)}


@pytest.fixture
def responses(tmp_path: Path) -> Iterator[Responses]:
    opened = Responses(tmp_path / "lm.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def asker(responses: Responses) -> Iterator[Asker]:
    asker = Asker(responses)
    yield asker
    asker.close()


def eventually(fact, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_recipe_builds_the_same_engine():
    settings = {"model": endpoint("http://127.0.0.1:1/v1", price=Price(read=2.0), extra={"a": [1]}), "attempts": 3}
    plain = json.loads(json.dumps(recipe(OpenAI, settings)))
    made = build(plain)
    assert isinstance(made, OpenAI)
    assert made.spec == settings["model"]
    assert (made._attempts, made._workers) == (3, 64)


def test_a_recipe_holds_no_key(monkeypatch):
    monkeypatch.setenv("CANARY_KEY", "sk-canary")
    assert "canary" not in json.dumps(recipe(OpenAI, {"model": endpoint("http://h/v1", key_variable="CANARY_KEY")}))


def test_replies_are_stored_before_they_are_told_and_faults_are_counted(asker, responses):
    with Server(faults=0.3, kinds=("500", "cut")) as server:
        model, batch = recipe(OpenAI, {"model": endpoint(server.url)}), keyed(server.url, 40)
        responses.claim(list(batch))
        faults: Counter[str] = Counter()
        said: dict[str, Reply] = {}
        for key, reply in asker.stream(model, batch, faults=faults):
            assert responses.get_many([key]) == {key: reply}
            said[key] = reply
        assert said.keys() == batch.keys()
        assert set(server.answered.values()) == {1}
        assert faults.total() == len(server.log) - 40 > 5
        more: Counter[str] = Counter()
        assert len(list(asker.stream(model, keyed(server.url, 3), faults=more))) == 3
        assert more.total() <= 3 * 8, "only those of this batch"
        assert asker._process is not None


def test_what_no_request_can_mend_is_raised_and_the_process_goes_on(asker, responses, monkeypatch):
    monkeypatch.setenv("M_KEY", "wrong")
    with Server(key="right") as server:
        batch = keyed(server.url, 3)
        responses.claim(list(batch))
        bad = recipe(OpenAI, {"model": endpoint(server.url, key_variable="M_KEY")})
        with pytest.raises(EndpointError, match="M_KEY"):
            list(asker.stream(bad, batch, faults=Counter()))
        process = asker._process
        assert process is not None
        assert process.poll() is None
    with Server() as server:
        assert len(list(asker.stream(recipe(OpenAI, {"model": endpoint(server.url)}), batch, faults=Counter()))) == 3
        assert asker._process is process


def test_what_is_on_its_way_when_the_money_ends_is_stored_and_the_rest_can_be_asked_later(asker, responses):
    with Server(funds=3, delay=0.5) as server:
        model, batch = recipe(OpenAI, {"model": endpoint(server.url)}), keyed(server.url, 20)
        responses.claim(list(batch))
        said: dict[str, Reply] = {}
        with pytest.raises(EndpointError, match="will not serve this account"):
            said.update(asker.stream(model, batch, faults=Counter()))
        known = responses.get_many(list(batch))
        assert known == said
        assert (len(known), len(server.log)) == (3, 4), "of four at a time"
        server.funds = None
        rest = {key: request for key, request in batch.items() if key not in known}
        assert dict(asker.stream(model, rest, faults=Counter())).keys() == rest.keys()
        assert set(server.answered.values()) == {1}


@pytest.mark.parametrize(("n", "raised"), [(8, True), (7, False)])
def test_a_server_that_answers_nothing_at_all_stops_the_run_and_is_asked_again_by_the_next(asker, responses, n, raised):
    """Else a search would take an outage of its judge for so many verdicts; one bad prompt must not stop it."""
    with Server(faults=1.0, kinds=["500"]) as server:
        settings = {"model": endpoint(server.url), "attempts": 2, "wait_max": 0.05}
        model, batch = recipe(OpenAI, settings), keyed(server.url, n)
        responses.claim(list(batch))
        found: dict[str, Reply] = {}
        if raised:
            with pytest.raises(EndpointError, match=r"answered none of 8 requests.*'500': 16"):
                found.update(asker.stream(model, batch, faults=Counter()))
        else:
            found.update(asker.stream(model, batch, faults=Counter()))
            assert [reply.finish for reply in found.values()] == ["error"] * n
        assert (responses.get_many(list(batch)), len(server.log)) == ({}, 2 * n)


class Gate:
    """Answers the first request at once, and holds the others until it is opened."""

    def __init__(self) -> None:
        self.held = 0
        self.opened = threading.Event()
        self._first = threading.Lock()

    def __call__(self, body: object) -> str:
        if not self._first.acquire(blocking=False):
            self.held += 1
            self.opened.wait(60)
        return "words"


def test_left_alone_it_sends_nothing_more_stores_what_is_on_its_way_and_then_lets_go(asker, responses, tmp_path):
    gate = Gate()
    with Server(reply=gate) as server:
        batch = keyed(server.url, 30)
        assert responses.claim(list(batch)) == list(batch)
        stream = asker.stream(recipe(OpenAI, {"model": endpoint(server.url)}), batch, faults=Counter())
        next(stream)
        eventually(lambda: gate.held == 5)  # of four at a time; the first reply made it five
        stream.close()
        process = asker._left[0]
        other = Responses(tmp_path / "lm.sqlite")
        assert other.claim(list(batch)) == [], "until it ends, it holds the claims of all that is not stored"
        gate.opened.set()
        assert process.wait(60) == 0
        known = other.get_many(list(batch))
        assert (len(known), gate.held, len(server.log)) == (6, 5, 6)
        assert set(other.claim(list(batch))) == batch.keys() - known.keys()
        other.close()


def test_another_run_waits_for_what_it_stores_and_pays_only_for_the_rest(asker, responses, tmp_path):
    with Server(delay=0.5) as server:
        model, plan = OpenAI(model=endpoint(server.url)), recipe(OpenAI, {"model": endpoint(server.url)})

        def interrupted(batch: dict[str, Request], *, faults: Counter[str]) -> Iterator[tuple[str, Reply]]:
            with closing(asker.stream(plan, batch, faults=faults)) as stream:
                yield next(stream)
                raise KeyboardInterrupt

        first = Cached(lm=model, responses=responses, ledger=_ledger(), elsewhere=interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.complete(requests(25))
        other = Responses(tmp_path / "lm.sqlite")
        second = Cached(lm=model, responses=other, ledger=_ledger(), elsewhere=None)
        assert all(reply.error is None for reply in second.complete(requests(25)))
        assert set(server.answered.values()) == {1}
        assert len(server.answered) == 25
        assert second._ledger.entries[0].cached_requests > 1
        other.close()


def _ledger() -> Ledger:
    ledger = Ledger()
    ledger.begin("stage")
    return ledger


def test_when_it_dies_the_run_says_so_and_its_claims_are_free(asker, responses, tmp_path):
    with Server(delay=0.3) as server:
        batch = keyed(server.url, 20)
        responses.claim(list(batch))
        stream = asker.stream(recipe(OpenAI, {"model": endpoint(server.url)}), batch, faults=Counter())
        next(stream)
        assert asker._process is not None
        os.kill(asker._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"exit status -9.*run the command again"):
            list(stream)
        other = Responses(tmp_path / "lm.sqlite")
        assert other.claim(list(batch)) != []
        other.close()
        responses.claim(list(batch))
        assert list(asker.stream(recipe(OpenAI, {"model": endpoint(server.url)}), batch, faults=Counter()))
        assert asker._process is not None
        os.kill(asker._process.pid, signal.SIGKILL)
        asker._process.wait()
        with pytest.raises(RuntimeError, match="run the command again"):  # between two batches
            list(asker.stream(recipe(OpenAI, {"model": endpoint(server.url)}), batch, faults=Counter()))


def test_a_full_pipe_of_a_run_that_reads_nothing_does_not_keep_it_from_storing(tmp_path):
    """A run that is stopped (as by Ctrl-Z) reads no replies; they are stored all the same."""
    code = """
import sys, time
from collections import Counter
from pathlib import Path
sys.path.insert(0, "tests")
from test_asker import Asker, OpenAI, Responses, endpoint, keyed, recipe
responses = Responses(Path(sys.argv[1]))
batch = keyed(sys.argv[2], 300)
responses.claim(list(batch))
stream = Asker(responses).stream(recipe(OpenAI, {"model": endpoint(sys.argv[2])}), batch, faults=Counter())
next(stream)
time.sleep(600)
"""
    with Server(reply=lambda body: "word " * 400) as server:
        command = [sys.executable, "-c", code, str(tmp_path / "lm.sqlite"), server.url]
        process = subprocess.Popen(command, cwd=ROOT)
        eventually(lambda: sum(server.answered.values()) == 300, 60)
        keys = list(keyed(server.url, 300))
        other = Responses(tmp_path / "lm.sqlite")
        eventually(lambda: len(other.get_many(keys)) == 300)
        process.kill()
        process.wait()
        other.close()
