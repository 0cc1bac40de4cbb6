"""The ledger: what was asked is counted, what is not covered is refused before it is sent."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evorefuse.ledger import Budget, BudgetError, Cost, Entry, Ledger, line, prompt_bytes, read, totals
from evorefuse.records import Message, Reply, Request, Usage
from evorefuse.store import Store

PRICE = (2.5, 10.0)


@dataclass(kw_only=True)
class Clock:
    """Seconds that pass when told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def reply(read: int, written: int, **changes) -> Reply:
    values = {"text": "x", "finish": "stop", **changes}
    return Reply(usage=Usage(prompt_tokens=read, completion_tokens=written), **values)


def cost(usd: float = 0.0, tokens: int = 0) -> Cost:
    return Cost(read=tokens, written=0, usd=usd)


def test_requests_and_cached_replies_are_counted_apart_by_stage_and_model():
    ledger = Ledger()
    ledger.begin("generate")
    ledger.add("a", reply(1000, 100), price=PRICE)
    ledger.add("a", reply(0, 0, finish="error", error="timed out"), price=PRICE)
    ledger.add("a", reply(400, 40), price=PRICE, cached=True)
    ledger.add("b", reply(5, 6), price=(0.0, 0.0))
    ledger.fault("a", {"429": 2, "cut": 0})
    ledger.fault("a", {"429": 1, "500": 1})
    ledger.begin("benchmark")
    ledger.add("a", reply(10, 1), price=PRICE)
    first, second, third = ledger.entries
    assert first == Entry(
        stage="generate", model="a", requests=2, read=1000, written=100, usd=pytest.approx(0.0035), cached_requests=1,
        cached_read=400, cached_written=40, cached_usd=pytest.approx(0.0014), errors=1, faults={"429": 3, "500": 1},
    )  # fmt: skip
    assert (second.stage, second.model, second.usd) == ("generate", "b", 0.0)
    assert (third.stage, third.requests, third.read) == ("benchmark", 1, 10)
    sums = totals(ledger.entries)
    assert list(sums) == ["a", "b"]
    assert (sums["a"].requests, sums["a"].read, sums["a"].faults) == (3, 1010, {"429": 3, "500": 1})


def test_a_line_for_people():
    whole = Entry(
        stage="generate", model="gpt-4o", requests=1240, read=300_000, written=12_000, usd=0.42, cached_requests=800,
        cached_usd=0.21, errors=3, faults={"429": 12},
    )  # fmt: skip
    said = "gpt-4o: 1,240 requests, 312k tokens, $0.42 (cached: 800 requests, $0.21), 3 errors; on the way 12 × 429"
    assert line(whole) == said
    assert line(Entry(stage="s", model="m", requests=1, read=10)) == "m: 1 requests, 10 tokens, $0.00"
    assert line(Entry(stage="s", model="m", read=2_500_000, usd=0.0123)) == "m: 0 requests, 2.50M tokens, $0.0123"


def test_the_worst_case_bounds_what_any_tokenizer_makes_of_a_prompt():
    texts = ["Hello", "كيف أخبز الخبز؟", "🍞🥖", ""]
    messages = tuple(Message(role="user", content=text) for text in texts)
    request = Request(messages=messages, max_tokens=40, schema='{"a":1}')
    assert prompt_bytes(request, system="Be kind.") == sum(len(t.encode()) for t in texts) + 7 + 8
    worst, likely = (f(request, price=PRICE, system="Be kind.") for f in (Cost.worst, Cost.likely))
    assert worst.read > prompt_bytes(request, system="Be kind.") > likely.read - 100
    assert worst.written == likely.written == 40
    assert worst.usd == pytest.approx((worst.read * 2.5 + 40 * 10) / 1e6)


def test_only_what_is_covered_may_be_sent():
    ledger = Ledger(Budget(usd=1.0))
    ledger.begin("s")
    assert ledger.affordable([cost(0.4)] * 5) == 2
    ledger.count("m", cost(0.5))
    assert ledger.affordable([cost(0.4)] * 5) == 1
    ledger.count("m", cost(0.4))
    with pytest.raises(
        BudgetError, match=r"budget\.usd=1 is spent: \$0\.9000 used, .* up to \$0\.4000; raise budget.usd"
    ):
        ledger.affordable([cost(0.4)])
    assert ledger.affordable([cost(0.1), cost(0.1)]) == 1
    assert ledger.affordable([]) == 0


def test_tokens_are_counted_where_nothing_has_a_price():
    ledger = Ledger(Budget(tokens=1000))
    ledger.add("m", reply(300, 200), price=(0.0, 0.0))
    ledger.add("m", reply(9000, 9000), price=(0.0, 0.0), cached=True)
    assert ledger.affordable([cost(tokens=200)] * 5) == 2
    with pytest.raises(BudgetError, match=r"budget\.tokens=1000 is spent: 500 used, .* up to 501; raise budget.tokens"):
        ledger.affordable([cost(tokens=501)])


def test_minutes_end_between_slices():
    clock = Clock()
    ledger = Ledger(Budget(minutes=2), clock=clock)
    assert 0 < ledger.affordable([cost()] * 1000) < 100
    clock.now += 119
    ledger.begin("next")
    clock.now += 1
    for refused in (ledger.expect_time, lambda: ledger.begin("third"), lambda: ledger.affordable([cost()])):
        with pytest.raises(BudgetError, match=r"budget\.minutes=2 is spent: .* 2 minutes; raise budget.minutes"):
            refused()


@given(
    limit=st.floats(0, 5),
    actual=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40),
    size=st.integers(1, 9),
)
def test_the_budget_is_never_overshot(limit, actual, size):
    """Whatever each request costs in truth (a share of its worst case), the sum stays within the limit."""
    ledger = Ledger(Budget(usd=limit))
    todo, spent = list(actual), 0.0
    try:
        while todo:
            n = ledger.affordable([cost(worst) for worst, _ in todo[:size]])
            for worst, share in todo[:n]:
                ledger.count("m", cost(worst * share))
                spent += worst * share
            todo = todo[n:]
    except BudgetError:
        assert spent + todo[0][0] > limit
    assert spent <= limit + 1e-9


def test_a_resumed_run_goes_on_counting(tmp_path: Path):
    clock = Clock()
    store = Store(tmp_path)
    ledger = Ledger(Budget(usd=1.0), store=store, clock=clock)
    ledger.begin("s")
    ledger.add("m", reply(100_000, 0), price=PRICE)
    ledger.fault("m", {"500": 1})
    clock.now += 30
    ledger.save()
    store.close()
    again = Ledger(Budget(usd=1.0, minutes=1), store=Store(tmp_path), clock=Clock(now=7.0))
    assert again.entries == ledger.entries == read(tmp_path)
    assert again.seconds == 30
    assert again.affordable([cost(0.7)] * 2) == 1
    again.begin("s")
    again.add("m", reply(1, 0), price=PRICE)
    assert again.entries[0].requests == 2
    assert read(tmp_path / "elsewhere") == []


def test_the_file_is_kept_up_to_date_but_not_at_every_reply(tmp_path: Path):
    clock = Clock()
    ledger = Ledger(store=Store(tmp_path), clock=clock)
    ledger.begin("s")
    for _ in range(10):
        ledger.add("m", reply(1, 1), price=PRICE)
    assert read(tmp_path) == []
    clock.now += 1.5
    ledger.add("m", reply(1, 1), price=PRICE)
    assert read(tmp_path)[0].requests == 11
    whole = json.loads((tmp_path / "ledger.json").read_text())
    assert set(whole) == {"schema", "seconds", "budget", "entries"}


def test_a_refusal_is_written_down_first(tmp_path: Path):
    ledger = Ledger(Budget(usd=0.0), store=Store(tmp_path), clock=Clock())
    ledger.count("m", cost(0.0))
    with pytest.raises(BudgetError):
        ledger.affordable([cost(0.1)])
    assert read(tmp_path)[0].requests == 1


@pytest.mark.parametrize("text", ['{"entries": []}', '{"seconds": 1, "entries": [{"model": 3}]}', "[1]", "{torn"])
def test_a_damaged_file_is_named(text: str, tmp_path: Path):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(ValueError, match=r"ledger\.json .*delete it"):
        Ledger(store=Store(tmp_path))


@pytest.mark.parametrize("limits", [{"usd": -1.0}, {"tokens": -5}, {"minutes": float("nan")}])
def test_a_limit_that_is_none_is_refused(limits):
    with pytest.raises(ValueError, match=rf"budget\.{next(iter(limits))} must be a number from 0 up"):
        Budget(**limits)
