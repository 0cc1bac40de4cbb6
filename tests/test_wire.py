"""The protocol and the limits of served models, without a server."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evorefuse.lm import transport
from evorefuse.lm.endpoint import Endpoint, EndpointError
from evorefuse.lm.transport import Fault, Lane, Traffic, retry_after
from evorefuse.lm.wire import body_of, is_filtered, reply_of, set_up_fault, summary, weight
from evorefuse.records import Message, Request, Usage

ASK = (Message(role="user", content="How do I bake bread?"),)
SCHEMA = '{"properties":{"label":{"type":"string"}},"required":["label"],"type":"object"}'


def endpoint(**changes) -> Endpoint:
    return Endpoint(**{"name": "m", "source": "served", "id": "m-1", **changes})


def body(request: Request | None = None, **changes) -> dict:
    return body_of(request or Request(messages=ASK), endpoint(**changes))


def test_a_body_holds_what_the_request_asks_and_the_server_takes():
    request = Request(messages=ASK, temperature=0.7, top_p=0.9, top_k=40, max_tokens=12, seed=2**40 + 5, schema=SCHEMA)
    assert body(request, top_k=True) == {
        "model": "m-1",
        "messages": [{"role": "user", "content": "How do I bake bread?"}],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 12,
        "top_k": 40,
        "seed": (2**40 + 5) % 2**31,
        "logprobs": True,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "reply", "strict": True, "schema": json.loads(SCHEMA)},
        },
    }
    bare = body(request, seed=False, logprobs=False, json="text", extra={"top_p": None, "effort": "low"})
    assert set(bare) == {"model", "messages", "temperature", "max_tokens", "effort"}
    assert body(request, json="object")["response_format"] == {"type": "json_object"}
    assert body(request, max_tokens_key="max_completion_tokens")["max_completion_tokens"] == 12
    assert "logprobs" not in body(Request(messages=ASK, logprobs=False))
    assert "top_k" not in body(Request(messages=ASK), top_k=True)


def test_the_system_prompt_is_the_endpoints_unless_the_request_brings_one():
    own = Request(messages=(Message(role="system", content="Be brief."), *ASK))
    assert [turn["content"] for turn in body(own, system="Be kind.")["messages"]] == ["Be brief.", ASK[0].content]
    assert body(system="Be kind.")["messages"][0] == {"role": "system", "content": "Be kind."}
    assert body(system="")["messages"][0] == {"role": "system", "content": ""}
    assert len(body()["messages"]) == 1


def answer(**changes) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Mix flour."}, "finish_reason": "stop", **changes}
    return json.dumps({"choices": [choice]})


def logprobs(*values) -> dict:
    return {"content": [{"token": "t", "logprob": value} for value in values]}


def test_a_reply_is_read_as_it_came():
    reply = reply_of(answer(logprobs=logprobs(-0.5, 0, -99.25)), body=body())
    assert (reply.text, reply.finish, reply.error) == ("Mix flour.", "stop", None)
    assert reply.logprobs == (-0.5, 0.0, -99.25)
    assert reply_of(answer(logprobs=logprobs(-0.5)), body=body(logprobs=False)).logprobs is None, "not asked for"
    assert reply.usage == Usage(prompt_tokens=5, completion_tokens=3), "a quarter of the letters, rounded up"
    counted = json.loads(answer()) | {"usage": {"prompt_tokens": 9, "completion_tokens": 0}}
    assert reply_of(json.dumps(counted), body=body()).usage == Usage(prompt_tokens=9, completion_tokens=0)
    odd = json.loads(answer()) | {"usage": {"prompt_tokens": "9", "completion_tokens": -1}}
    assert reply_of(json.dumps(odd), body=body()).usage == reply.usage


@pytest.mark.parametrize(
    "given", [None, {}, [], "x", {"content": None}, {"content": []}, {"content": "abc"}, {"content": [{"token": "t"}]},
              {"content": [-0.5]}, logprobs(-0.5, None), logprobs("-0.5"), logprobs(True), logprobs(0.7),
              logprobs(float("nan")), logprobs(float("-inf")), logprobs(-0.5, -9999.0), logprobs(-9999, -0.5)],
)  # fmt: skip
def test_odd_log_probabilities_are_none(given):
    assert reply_of(answer(logprobs=given), body=body()).logprobs is None


@pytest.mark.parametrize(
    ("message", "reason", "text", "finish"),
    [
        ({"content": ""}, "stop", "", "stop"),
        ({"content": None, "refusal": "I cannot."}, "stop", "I cannot.", "stop"),
        ({"content": None}, "length", "", "length"),
        ({"content": "Mix"}, "content_filter", "Mix", "blocked"),
        ({"content": None}, "content_filter: SAFETY", "", "blocked"),
        ({"content": None, "tool_calls": []}, "tool_calls", "", "error"),
        ({"content": "Mix"}, None, "", "error"),
    ],
)
def test_an_end_is_one_of_four(message, reason, text, finish):
    reply = reply_of(answer(message=message, finish_reason=reason), body=body())
    assert (reply.text, reply.finish) == (text, finish)
    assert (reply.error is not None) == (finish == "error")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "finish_reason", "logprobs", "usage", "error", "code"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(payload=ANYTHING, cut=st.integers(0, 60))
def test_whatever_a_server_sends_is_a_reply_or_a_fault(payload, cut):
    text = json.dumps(payload)
    for sent in (text, text[:cut], json.dumps({"choices": [payload]}), json.dumps({"choices": [{"message": payload}]})):
        try:
            reply = reply_of(sent, body=body())
        except Fault:
            continue
        assert (reply.finish == "error") == (reply.error is not None)
    assert isinstance(summary(payload), str)
    assert isinstance(is_filtered(400, payload), bool)
    set_up_fault(400, payload, "", endpoint=endpoint(), body=body())


OPENAI = {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
          "'max_completion_tokens' instead.", "type": "invalid_request_error", "param": "max_tokens",
          "code": "unsupported_parameter"}}  # fmt: skip
MISTRAL = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
CONTEXT = {"error": {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000 "
           "tokens. Please reduce max_tokens.", "code": "context_length_exceeded"}}  # fmt: skip
ECHO = {"detail": [{"type": "too_long", "msg": "too long", "input": "unknown temperature, model not found, flagged"}]}


@pytest.mark.parametrize(
    ("status", "payload", "said"),
    [
        (400, OPENAI, "refuses the field 'max_tokens'"),
        (422, MISTRAL, "refuses the field 'seed'"),
        (422, {"detail": "Unexpected fields in the request: {'top_p'}"}, r"+target.extra.top_p=null"),
        (400, "unrecognized request argument supplied: top_p", "refuses the field 'top_p'"),
        (400, {"error": {"message": "Model Not Exist"}}, "knows no model 'm-1'"),
        (404, {"detail": "Not Found"}, "knows no model 'm-1'"),
        (400, CONTEXT, None),
        (422, ECHO, None),
        (400, {"error": {"message": "the last turn must be the user's"}}, None),
    ],
)
def test_an_error_is_the_set_ups_or_the_requests_own(status, payload, said):
    found = set_up_fault(status, payload, summary(payload), endpoint=endpoint(), body=body())
    assert not is_filtered(status, payload)
    assert (found is None) if said is None else (said in str(found))


@pytest.mark.parametrize(
    ("status", "payload"),
    [
        (400, {"error": {"code": "content_filter", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
        (400, {"error": {"code": "content_policy_violation"}}),
        (403, {"error": {"message": "Your input was flagged", "metadata": {"reasons": ["x"]}}}),
    ],
)
def test_a_providers_filter_is_known(status, payload):
    assert is_filtered(status, payload)


NOW = datetime(2026, 11, 2, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after": "0.5"}, 0.5), ({"retry-after": "-4"}, 0.0),
        ({"retry-after": "soon"}, None), ({"retry-after": "nan"}, None), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Mon, 02 Nov 2026 12:00:07 GMT"}, 7.0),
        ({"retry-after": "Mon, 02 Nov 2026 11:59:07 GMT"}, 0.0),
    ],
)  # fmt: skip
def test_a_wait_is_read_from_seconds_and_dates(headers, seconds):
    assert retry_after(headers, now=NOW) == seconds


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def traffic(**changes) -> Traffic:
    limits = {"concurrency": 4, "concurrency_max": 16, "requests_per_minute": None, "tokens_per_minute": None}
    return Traffic(**{**limits, "wait_max": 60.0, **changes})


@pytest.mark.parametrize(
    ("requests_per_minute", "tokens_per_minute", "seconds"), [(600, None, 0.1), (None, 6000, 0.5), (600, 6000, 0.5)]
)
def test_the_tightest_limit_sets_the_pace(clock, requests_per_minute, tokens_per_minute, seconds):
    """Late wake-ups are made up for, and a pause saves up no more than the slack."""
    road = traffic(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    for pause in (0, 1000):
        clock.now += pause
        began = clock.now
        for _ in range(200):
            clock.now += max(0.0, road.wait()) + 0.01
            road.spend(50)
        assert 199 * seconds - transport.SLACK <= clock.now - began <= 199 * seconds + 0.1


def test_the_width_grows_with_each_reply_and_halves_once_a_round_trip(clock):
    road = traffic()
    for _ in range(20):
        road.grow()
    assert road.width == 16
    sent = clock.now
    clock.now += 1
    for _ in range(16):
        road.shrink(Fault("429", ""), sent=sent)
    assert road.width == 8
    for _ in range(8):
        road.grow()
    assert 8.9 < road.width < 9.1, "one a round trip"
    road.shrink(Fault("500", ""), sent=clock.now + 1)
    assert 8.9 < road.width < 9.1
    for later in range(2, 9):
        road.shrink(Fault("429", ""), sent=clock.now + later)
        clock.now += 10
    assert road.width == 1


def test_a_complaint_silences_all_for_as_long_as_it_says(clock):
    road = traffic(wait_max=30.0)
    road.shrink(Fault("429", "", retry_after=7.0), sent=clock.now)
    road.shrink(Fault("503", "", retry_after=2.0), sent=clock.now)
    assert road.wait() == pytest.approx(7.0)
    road.shrink(Fault("429", "", retry_after=3600.0), sent=clock.now)
    assert road.wait() == pytest.approx(30.0)


def test_a_lane_holds_no_more_than_its_width_and_wakes_who_waits():
    async def race() -> tuple[int, int]:
        road = traffic(concurrency=2, concurrency_max=5)
        lane, inside, most, done = Lane(road), 0, 0, 0

        async def one(number: int) -> None:
            nonlocal inside, most, done
            try:
                async with lane.slot(1.0):
                    inside += 1
                    most = max(most, inside)
                    await anyio.sleep(0.005)
                    inside -= 1
                    if number % 10 == 3:
                        raise Fault("500", "")
            except Fault:
                pass
            done += 1

        async with anyio.create_task_group() as group:
            for number in range(60):
                group.start_soon(one, number)
        return most, done

    assert anyio.run(race) == (5, 60)


def test_a_requests_weight_counts_what_it_may_write():
    assert weight(body(Request(messages=ASK, max_tokens=100))) == 20 / 3 + 100


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://a/v1", "", "https://", "https://me:pw@a/v1", "https://a/v1?key=b"]
)
def test_an_address_that_is_none_or_tells_a_secret_is_refused(url):
    with pytest.raises(EndpointError, match="base_url"):
        endpoint(base_url=url)


@pytest.mark.parametrize(
    ("key", "said"), [("", "is not set"), ("sk-a\n", "spaces, line ends"), ("sk a", "spaces"), ("ключ", "ASCII")]
)
def test_a_key_that_is_none_is_refused_without_its_value(key, said, monkeypatch):
    monkeypatch.setenv("SOME_KEY", key)
    with pytest.raises(EndpointError, match=said) as caught:
        endpoint(key_variable="SOME_KEY")
    assert "SOME_KEY" in str(caught.value)
    assert not key or key.strip() not in str(caught.value)
