"""The dry run: stand-ins whose replies parse, a count on the high side, and nothing left behind."""

import io
import json
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import BaseModel, Field, TypeAdapter
from rich.console import Console
from spending import composed, served

from evorefuse.estimate import estimate
from evorefuse.ledger import Budget, Entry, Ledger
from evorefuse.lm.endpoint import Endpoint, Price
from evorefuse.lm.rehearsal import Rehearsal, Scatter
from evorefuse.ports import LM, Embedder
from evorefuse.progress import Progress
from evorefuse.records import Message, Request
from evorefuse.run import execute

MODEL = Endpoint(name="far", source="served", id="far-1", system="Be kind.", price=Price(read=2.0, written=8.0))


def requests(n: int, **changes: Any) -> list[Request]:
    return [
        Request(messages=(Message(role="user", content=f"text {i}"),), **{"max_tokens": 40, **changes})
        for i in range(n)
    ]


def stand_in() -> tuple[Rehearsal, Ledger]:
    ledger = Ledger()
    ledger.begin("stage")
    return Rehearsal(model=MODEL, ledger=ledger, price=(2.0, 8.0)), ledger


class Inner(BaseModel):
    kind: Literal["a", "b"]
    many: list[str] = Field(min_length=2)


class Fields(BaseModel, extra="forbid"):
    verdict: Literal["unsafe", "debatable", "safe"]
    why: str = Field(min_length=3, max_length=20)
    n: int = Field(ge=3, le=9)
    share: float = Field(gt=0)
    sure: bool
    maybe: str | None
    inner: Inner
    rest: list[Inner]
    fixed: Literal["only"]


@dataclass(kw_only=True)
class Draft:
    instruction: str
    reason: str


@pytest.mark.parametrize("kind", [Fields, Draft, Inner, list[Inner]])
def test_a_reply_fits_its_schema(kind):
    adapter = TypeAdapter(kind)
    model, _ = stand_in()
    replies = model.complete(requests(20, schema=json.dumps(adapter.json_schema())))
    values = [adapter.validate_json(reply.text) for reply in replies]
    assert all(reply.finish == "stop" and reply.error is None for reply in replies)
    if kind is Fields:
        assert {value.verdict for value in values} == {"safe"}
    if kind is Draft:
        assert len({value.instruction for value in values}) == len({value.reason for value in values}) == 20
        assert all(10 <= len(value.instruction.split()) <= 60 for value in values)
        assert all(value.instruction != value.reason for value in values)


@pytest.mark.parametrize(
    "schema", ["{}", "true", '{"type":"object"}', '{"$ref":"#/nowhere"}', '{"type":["null","string"]}']
)
def test_an_odd_schema_breaks_nothing(schema):
    json.loads(stand_in()[0].complete(requests(1, schema=schema))[0].text)


def test_a_schema_that_holds_itself_ends():
    schema = {"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}}
    json.loads(stand_in()[0].complete(requests(1, schema=json.dumps(schema)))[0].text)


def test_texts_differ_by_request_and_are_the_same_each_time():
    model, _ = stand_in()
    assert isinstance(model, LM)
    first, again = model.complete(requests(50)), stand_in()[0].complete(requests(50))
    assert first == again
    assert len({reply.text for reply in first}) == 50
    assert all(reply.logprobs and len(reply.logprobs) == 40 for reply in first)
    assert model.complete(requests(1, logprobs=False))[0].logprobs is None
    assert len(model.complete(requests(1, max_tokens=2))[0].text.split()) <= 2


def test_every_request_is_counted_at_full_length_and_at_the_models_price():
    model, ledger = stand_in()
    model.complete(requests(3))
    (entry,) = ledger.entries
    assert (entry.stage, entry.model, entry.requests, entry.written) == ("stage", "far", 3, 120)
    assert entry.read >= 3 * (len("text 0") + len("Be kind.")) // 3
    assert entry.usd == pytest.approx((entry.read * 2 + 120 * 8) / 1e6)


def test_the_embedders_stand_in_gives_unit_vectors_by_text():
    points = Scatter().embed(["a", "b", "a", "🍞 \ud800"])
    assert isinstance(Scatter(), Embedder)
    assert points.shape == (4, 64)
    assert np.allclose(np.linalg.norm(points, axis=1), 1, atol=1e-6)
    assert np.array_equal(points[0], points[2])
    assert abs(points[0] @ points[1]) < 0.9
    assert Scatter().embed([]).shape == (0, 64)


def dry(folder, *overrides: str) -> tuple[str, list[Entry]]:
    """What a dry run prints, and what it counts."""
    config = composed(folder, "dry_run=true", *overrides)
    console = Console(file=io.StringIO(), width=200)
    modules = {name: import_module(f"evorefuse.stages.{name}") for name in config["stages"]}
    entries = estimate(config, modules, budget=Budget(usd=5.0), progress=Progress(console=console))
    return console.file.getvalue(), entries


def test_a_dry_run_counts_every_role_needs_no_key_and_loads_no_model(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(f"evorefuse.lm.hf.{name}", load)
    said, entries = dry(
        tmp_path, "+experiment=smoke", "mutator=llm", "mutator.strategies=[anger,disgust]", "scorer@safety=llm_safety",
        "stages=[doctor,generate,benchmark,judge,report]",
    )  # fmt: skip
    by = {(entry.stage, entry.model): entry for entry in entries}
    assert set(by) == {
        ("generate", "gpt4o"), ("generate", "gpt4o_mini"), ("generate", "smollm2_guard"), ("benchmark", "smollm2_guard")
    }  # fmt: skip
    # 3 seeds, 2 steps, 2 strategies, and 1 child a lineage and step for one arm
    assert by["generate", "gpt4o"].requests == 3 * 2 * (2 + 1)
    assert by["generate", "gpt4o"].usd > 0
    assert by["generate", "smollm2_guard"].usd == 0
    for word in (
        "gpt4o_mini",
        "local",
        "all served",
        "budget",
        "$5.00",
        "doctor: skipped",
        "judge: skipped",
        "report: skipped",
    ):
        assert word in said


def test_a_dry_run_is_on_the_high_side_of_the_run_itself(tmp_path):
    with served() as (server, overrides):
        said, entries = dry(tmp_path / "dry", *overrides)
        assert not server.log, "nothing was asked"
        execute(composed(tmp_path / "wet", *overrides), Progress(quiet=True))
        real = json.loads((tmp_path / "wet" / "run" / "ledger.json").read_text())["entries"]
    dreamt = {(entry.stage, entry.model): entry for entry in entries}
    assert {(entry["stage"], entry["model"]) for entry in real} <= set(dreamt)
    for entry in real:
        high = dreamt[entry["stage"], entry["model"]]
        assert entry["requests"] <= high.requests
        assert entry["usd"] <= high.usd
    assert "$" in said


def test_a_stage_that_cannot_go_on_is_said_and_the_others_are_counted(tmp_path):
    said, entries = dry(tmp_path, "+experiment=smoke", "stages=[benchmark]")
    assert "benchmark: stopped: " in said
    assert entries == []
