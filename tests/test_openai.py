"""The engine for served models, against a server on loopback that fails as real ones do."""

import inspect
import os
import signal
import socket
import time
from collections import Counter
from threading import Timer, get_ident

import pytest
from script import digest, mutator_judge
from server import Server
from server_http import FAULTS, PAID, fixed

from evorefuse.lm.endpoint import Endpoint, EndpointError, Price
from evorefuse.lm.openai import OpenAI
from evorefuse.lm.wire import body_of
from evorefuse.ports import Streaming
from evorefuse.records import Message, Request

CANARY = "sk-canary-5f2e9c"
CAUSES = {"cut_body": "cut", "invalid_json": "malformed", "empty_choices": "choices", "wrong_n": "choices"}


def endpoint(url: str, **changes) -> Endpoint:
    return Endpoint(**{"name": "scripted", "source": "served", "id": "scripted", "base_url": url, **changes})


def engine(server: Server | str, **changes) -> OpenAI:
    """An engine that waits little between attempts."""
    url = server if isinstance(server, str) else server.url
    model = endpoint(url, **changes.pop("model", {}))
    return OpenAI(model=model, **{"deadline": 20.0, "wait_max": 0.05, **changes})


def requests(n: int, **changes) -> list[Request]:
    ask = [(Message(role="user", content=f"How do I bake {i} loaves of bread?"),) for i in range(n)]
    return [Request(messages=messages, seed=i, **changes) for i, messages in enumerate(ask)]


@pytest.mark.parametrize("n", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_bad_network_loses_nothing_and_asks_nothing_twice(n):
    asked = requests(n)
    with Server(faults=0.3, seed=4, delay=0.005) as server:
        lm = engine(server, wait_max=1.0)
        arrived = list(lm.stream(asked))
        log = server.log
    assert sorted(index for index, _ in arrived) == list(range(n))
    keys = [digest(body_of(request, lm.spec)) for request in asked]
    done = {key: [entry["done"] for entry in log if entry["key"] == key] for key in keys}
    assert Counter(entry["key"] for entry in log).keys() == set(keys)
    for index, reply in arrived:
        history = done[keys[index]]
        assert [what in PAID for what in history] == [False] * (len(history) - 1) + [True]
        assert reply.error is None
        said = mutator_judge(body_of(asked[index], lm.spec))
        assert reply.finish == ("blocked" if history[-1] in ("content_filter", "filter_400") else reply.finish)
        assert reply.text == {"length": said[: len(reply.text)], "blocked": ""}.get(reply.finish, said)
        assert (reply.logprobs is None) == (history[-1] in ("no_logprobs", "filter_400"))
    failed = Counter(CAUSES.get(entry["done"], entry["done"]) for entry in log if entry["done"] not in PAID)
    assert lm.faults == failed
    assert len({entry["done"] for entry in log}) == len(FAULTS) + 1, "some kind of fault was not met"


@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in PAID])
def test_an_item_that_keeps_failing_is_a_counted_error(kind):
    with Server(faults=1.0, kinds=[kind], retry_after=0.01) as server:
        lm = engine(server, attempts=3)
        replies = lm.complete(requests(3))
        assert len(server.log) == 9
    assert [reply.finish for reply in replies] == ["error"] * 3
    assert all(f"{CAUSES.get(kind, kind)}, 3 attempts" in reply.error for reply in replies)
    assert lm.faults == {CAUSES.get(kind, kind): 9}


def test_what_a_server_keeps_back_is_data_and_no_error():
    found = {}
    for kind in ("content_filter", "filter_400", "length", "no_logprobs"):
        with Server(faults=1.0, kinds=[kind]) as server:
            found[kind] = engine(server).complete(requests(1))[0]
            assert len(server.log) == 1
    assert [found[kind].finish for kind in found] == ["blocked", "blocked", "length", "stop"]
    assert [found[kind].error for kind in found] == [None] * 4
    assert found["length"].text
    assert found["no_logprobs"].logprobs is None
    assert found["length"].logprobs is not None


def test_a_slow_body_ends_at_the_deadline():
    with Server(faults=1.0, kinds=["slow"], slow=3.0) as server:
        began = time.monotonic()
        reply = engine(server, deadline=0.3, attempts=2).complete(requests(1))[0]
        assert time.monotonic() - began < 8
        assert [entry["done"] for entry in server.log] == ["abandoned"] * 2
    assert reply.error == "timeout, 2 attempts: no whole reply within 0.3 s"


def test_a_permitted_rate_is_used_and_kept():
    """Many batches share one limit: none starts with a full bucket of its own."""
    asked = requests(180)
    with Server(rpm=1800, delay=0.05) as server:
        lm = engine(server, requests_per_minute=1800)
        began = time.monotonic()
        for start in range(0, 180, 10):
            assert all(reply.finish == "stop" for reply in lm.complete(asked[start : start + 10]))
        took = time.monotonic() - began
        refused = sum(entry["done"] == "429" for entry in server.log)
    assert 180 / took >= 0.95 * 1800 / 60
    assert refused < 0.01 * 180


def test_an_unknown_rate_is_found_without_a_storm():
    with Server(rpm=1200, delay=0.02) as server:
        lm = engine(server, wait_max=30.0)
        assert all(reply.finish == "stop" for reply in lm.complete(requests(60)))
        log = server.log
    refused = [entry["at"] for entry in log if entry["done"] == "429"]
    assert 0 < len(refused) < 20
    for moment in refused:  # the server asked for a second of silence; what was on its way may still come
        assert not [entry for entry in log if moment + 0.3 < entry["at"] < moment + 0.9]


def test_replies_come_in_order_and_nothing_is_asked_for_nothing():
    with Server(reply=lambda body: time.sleep(body["seed"] % 7 / 100) or body["messages"][-1]["content"]) as server:
        lm = engine(server)
        assert isinstance(lm, Streaming)
        asked = requests(40)
        assert [reply.text for reply in lm.complete(asked)] == [request.messages[0].content for request in asked]
        assert lm.complete([]) == []
        assert len(server.log) == 40


def test_a_reply_is_kept_before_it_is_handed_on_by_the_thread_that_read_it():
    kept = {}
    with Server() as server:
        for index, reply in engine(server).stream(requests(20), keep=lambda i, r: kept.update({i: (r, get_ident())})):
            assert kept[index][0] is reply
        assert get_ident() not in {thread for _, thread in kept.values()}
        with pytest.raises(ZeroDivisionError):
            list(engine(server).stream(requests(20), keep=lambda i, _: 1 // 0))


def test_closing_the_stream_cancels_what_is_open():
    with Server(delay=0.4) as server:
        stream = engine(server, concurrency=4, concurrency_max=4).stream(requests(200))
        next(stream)
        began = time.monotonic()
        stream.close()
        assert time.monotonic() - began < 3
        time.sleep(0.6)
        assert (seen := len(server.log)) <= 12
        time.sleep(0.6)
        assert len(server.log) == seen


def test_where_the_money_ends_what_is_in_flight_is_read_and_nothing_more_is_sent():
    kept, arrived = {}, []
    with Server(funds=4, faults=0.4, kinds=["500"], delay=0.5) as server:
        lm = engine(server, concurrency=8)
        with pytest.raises(EndpointError, match="will not serve this account"):
            arrived.extend(lm.stream(requests(100), keep=lambda index, reply: kept.update({index: reply})))
        time.sleep(0.2)
        assert Counter(entry["done"] for entry in server.log) == {"answered": 4, "500": 2, "429_quota": 2}
        assert kept == dict(arrived)
        assert [reply.finish for reply in kept.values()] == ["stop"] * 4
        server.funds, server.faults = None, 0.0
        assert lm.complete(requests(1))[0].finish == "stop", "another stream may be sent"


def test_where_the_money_ends_nobody_waits_for_the_next_permitted_moment():
    with Server(funds=0) as server:
        began = time.monotonic()
        with pytest.raises(EndpointError, match="will not serve this account"):
            engine(server, requests_per_minute=2).complete(requests(9))
        assert time.monotonic() - began < 10
        assert len(server.log) == 1


def test_an_interrupt_is_heeded_at_once():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started deaf to it
    with Server(delay=30.0) as server:
        Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            engine(server, deadline=60.0).complete(requests(5))
        assert time.monotonic() - began < 10


def test_a_proxy_of_the_environment_is_no_way_to_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Server() as server:
        assert engine(server).complete(requests(1))[0].finish == "stop"


def stopped(lm: OpenAI) -> str:
    with pytest.raises(EndpointError) as caught:
        lm.complete(requests(30))
    line = str(caught.value)
    assert "\n" not in line
    assert CANARY not in line
    assert CANARY not in repr(caught.value.__cause__)
    return line


def test_a_wrong_key_stops_the_run_by_its_variables_name(monkeypatch):
    monkeypatch.setenv("SOME_KEY", CANARY)
    with Server(key="another") as server:
        line = stopped(engine(server, model={"key_variable": "SOME_KEY"}))
        assert line.startswith(f"the key in SOME_KEY was not accepted by {server.url}")
        assert f"{server.url} asks for a key" in stopped(engine(server))
        assert len(server.log) < 30
    with Server(key=CANARY) as server:
        assert engine(server, model={"key_variable": "SOME_KEY"}).complete(requests(1))[0].finish == "stop"


def test_an_unknown_model_stops_the_run_by_its_name():
    with Server(models=["other"]) as server:
        assert f"{server.url} knows no model 'scripted'" in stopped(engine(server))


def test_a_host_that_never_answers_stops_the_run_soon():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    began = time.monotonic()
    assert stopped(engine(url, wait_max=60.0)).startswith(f"{url} never answered")
    assert time.monotonic() - began < 10


def test_a_server_that_goes_away_for_good_leaves_errors_that_are_counted():
    with Server() as server:
        lm = engine(server, attempts=3)
        assert lm.complete(requests(2))[1].finish == "stop"
    replies = lm.complete(requests(3))
    assert all("unreachable, 3 attempts" in reply.error for reply in replies)
    assert lm.faults == {"unreachable": 9}


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (401, f"Incorrect API key provided: {CANARY}", "the key in SOME_KEY was not accepted"),
        (403, f"{CANARY} may not do this", "was not accepted by"),
        (402, f"Insufficient Balance of {CANARY}", "will not serve this account"),
        (429, "insufficient_quota: check your plan", "will not serve this account"),
        (400, "Unsupported parameter: 'logprobs' is not supported with this model.", "refuses the field 'logprobs'"),
    ],
)
def test_a_key_that_a_server_quotes_is_in_no_message(status, message, said, monkeypatch):
    monkeypatch.setenv("SOME_KEY", CANARY)
    with fixed(status, {"error": {"message": message, "code": None, "param": None}}) as url:
        assert said in stopped(engine(url, model={"key_variable": "SOME_KEY"}))


@pytest.mark.parametrize("status", [400, 500, 200])
def test_a_key_that_a_server_quotes_is_in_no_reply(status, monkeypatch):
    monkeypatch.setenv("SOME_KEY", CANARY)
    with fixed(status, {"error": {"message": f"{CANARY}: the context is too long"}}) as url:
        reply = engine(url, attempts=2, model={"key_variable": "SOME_KEY"}).complete(requests(1))[0]
    assert reply.finish == "error"
    assert "…: the context is too long" in reply.error
    assert CANARY not in repr(reply)


def test_a_text_that_cannot_be_sent_harms_no_other():
    odd = Request(messages=(Message(role="user", content="half \ud83c a loaf"),))
    with Server() as server:
        replies = engine(server).complete([*requests(2), odd])
    assert [reply.finish for reply in replies] == ["stop", "stop", "error"]


def test_identity_is_what_changes_a_reply_and_transport_the_rest(monkeypatch):
    monkeypatch.setenv("SOME_KEY", CANARY)
    assert set(inspect.signature(OpenAI).parameters) - OpenAI.TRANSPORT == {"model"}
    here = engine("http://127.0.0.1:1/v1")
    there = {"key_variable": "SOME_KEY", "price": Price(read=1.0, written=2.0), "licence": "MIT"}
    other = engine("https://example.org/v1", concurrency=9, model=there)
    assert other.identity == here.identity
    assert other.price == (1.0, 2.0)
    assert CANARY not in repr(vars(other))
    for change in ({"id": "x"}, {"name": "x"}, {"system": ""}, {"extra": {"a": 1}}, {"json": "text"}, {"seed": False},
                   {"logprobs": False}, {"top_k": True}, {"max_tokens_key": "max_completion_tokens"}):  # fmt: skip
        assert engine("http://127.0.0.1:1/v1", model=change).identity != here.identity


@pytest.mark.parametrize(
    "limits",
    [{"concurrency": 0}, {"concurrency": 9, "concurrency_max": 8}, {"deadline": 0}, {"requests_per_minute": 0},
     {"tokens_per_minute": -1.0}, {"attempts": 0}, {"wait_max": 0}],
)  # fmt: skip
def test_a_limit_that_lets_nothing_through_is_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        engine("http://127.0.0.1:1/v1", **limits)
