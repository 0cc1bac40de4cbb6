"""The doctor: what it says of servers that ignore things, against what they do; and how it stops a run."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from script import draw, identity_of
from server import Server
from server_http import Handler

from evorefuse.checkup.check import Check, Effort
from evorefuse.compose import ConfigError, check
from evorefuse.ledger import Budget, BudgetError, Ledger
from evorefuse.lm.cached import Cached
from evorefuse.lm.endpoint import Endpoint, Price
from evorefuse.lm.openai import OpenAI
from evorefuse.lm.scripted import Scripted
from evorefuse.progress import Progress
from evorefuse.records import Reply, Usage
from evorefuse.responses import Responses
from evorefuse.stages import doctor
from evorefuse.stages.doctor import Settings
from evorefuse.store import Store, read_json

WORDS = ("storm", "lamp", "cat", "sea", "rock", "wind", "boat", "night", "wave", "gull", "rope", "bell", "fog", "door")
INJECTED = 16  # tokens of a system prompt that a server adds where none is sent
QUICK = Settings(effort=Effort(repeats=3, requests=2, max_tokens=20, tolerance=1e-3))


class Silent:
    """A tracker that keeps the table."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def table(self, name: str, columns: Any, rows: Any) -> None:
        self.rows += rows


def talk(body: Mapping[str, Any]) -> str:
    """A story where one is asked for, else a few words; by a schema what it asks for."""
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if schema:
        return json.dumps({name: field["enum"][0] for name, field in schema["properties"].items()})
    if body.get("response_format"):
        return '{"text": "the sea is wide"}'
    long = "story" in body["messages"][-1]["content"]
    key = identity_of(body)
    return " ".join(WORDS[int(draw(key, i) * len(WORDS))] for i in range(90 if long else 8))


@pytest.fixture(autouse=True)
def honest_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted server counts an end of text even where it cut one; real ones do not."""
    real = Handler._completion

    def counted(self: Handler, what: str, body: dict[str, Any], attempt: int) -> dict[str, Any]:
        done = real(self, what, body, attempt)
        cut = sum(choice["finish_reason"] == "length" for choice in done["choices"])
        done["usage"]["completion_tokens"] -= cut
        if getattr(self.script, "injects", False) and body["messages"][0]["role"] != "system":
            done["usage"]["prompt_tokens"] += INJECTED
        return done

    monkeypatch.setattr(Handler, "_completion", counted)


@pytest.fixture
def examined(tmp_path: Path) -> Callable[..., dict[str, Check]]:
    """Run the stage over models by role; the checks by name (of the last model), and an error under `error`."""

    def run(models: Mapping[str, Any], *, cfg: Settings = QUICK) -> dict[str, Any]:
        store = Store(tmp_path / "doctor")
        screen = io.StringIO()
        progress = Progress(console=Console(file=screen, width=200))
        found: dict[str, Any] = {}
        try:
            found["summary"] = doctor.run(
                cfg=cfg, seed=1, models=models, store=store, tracker=Silent(), progress=progress
            )
        except ValueError as error:
            found["error"] = str(error)
        finally:
            store.close()
        checks = read_json(tmp_path / "doctor" / "report.json")["checks"]
        rows = [Check(**{**row, "roles": tuple(row["roles"])}) for row in checks]
        return found | {"all": rows, "screen": screen.getvalue()} | {check.name: check for check in rows}

    return run


def served(server: Server, **spec: Any) -> OpenAI:
    endpoint = Endpoint(name="loop", source="served", id="scripted", base_url=server.url, **spec)
    return OpenAI(model=endpoint, attempts=2, wait_max=0.1)


def test_a_server_that_honours_all_is_found_to(examined):
    with Server(reply=talk) as server:
        found = examined({"target": served(server), "writer": served(server, json="object", price=Price(read=2))})
    assert "error" not in found
    states = {(c.roles, c.name): c.state for c in found["all"]}
    honoured = ("reachable", "prompt", "system_prompt", "logprobs", "n", "json", "sampling", "seed", "temperature_0",
                "max_tokens", "stop_reason", "speed")  # fmt: skip
    assert [name for name in honoured if states[("target",), name] != "ok"] == []
    assert states[("target",), "bos"] == states[("target",), "context"] == states[("target",), "price"] == "unknown"
    assert "object honoured" in found["json"].got
    assert found["price"].state == "ok"
    assert found["summary"].metrics["unmet"].value == 0
    assert found["summary"].metrics["dollars"].value > 0


IGNORING = ("logprobs", "response_format", "seed", "n")


def test_what_a_server_ignores_is_said_and_stops_the_run_with_the_cure(examined):
    with Server(reply=talk, ignores=IGNORING) as server:
        found = examined({"target": served(server), "judge": served(server, system="Judge.")})
        target, judge = ([c for c in found["all"] if c.roles == (role,)] for role in ("target", "judge"))
        named = {c.name: c for c in target}
        assert {name: named[name].state for name in ("logprobs", "json", "seed", "n")} == dict.fromkeys(
            ("logprobs", "json", "seed", "n"), "ignored"
        )
        assert [c.name for c in target if c.missing] == ["logprobs"], "a target is held to no schema, and needs no seed"
        assert [c.name for c in judge if c.missing] == ["json"], "a judge's log-probabilities are not used"
        assert "loop (target): logprobs ignored: asked for, none given. Cure: target.logprobs=false" in found["error"]
        assert "judge_model.json=text" in found["error"]
        assert "one after another" not in named["seed"].got
        mended = examined({"target": served(server, logprobs=False), "judge": served(server, json="text", seed=False)})
    assert "error" not in mended
    assert mended["logprobs"].state == mended["json"].state == "ignored", "it is still said"
    assert mended["summary"].metrics["ignored"].value == 2 * 5


def test_a_server_that_knows_objects_but_no_schema(examined):
    def objects_only(body: Mapping[str, Any]) -> str:
        return talk({**body, "response_format": None} if "json_schema" in str(body.get("response_format")) else body)

    with Server(reply=objects_only) as server:
        assert "mutator.writer.model.json=object" in examined({"mutator.writer": served(server)})["error"]


def test_a_temperature_that_is_ignored_matters_to_targets_only(examined):
    def greedy(body: Mapping[str, Any]) -> str:
        return talk({"messages": body["messages"], "response_format": body.get("response_format")})

    with Server(reply=greedy) as server:
        assert "1 different of 3 replies" in examined({"target": served(server)})["error"]
        found = examined({"writer": served(server)})
        assert "error" not in found
        assert found["sampling"].state == "ignored"
        assert found["seed"].state == "unknown"
        allowed = Settings(needs=("reachable", "logprobs"), effort=QUICK.effort)
        assert "error" not in examined({"target": served(server)}, cfg=allowed)


def test_top_k_is_found_out_by_leaving_nothing_to_draw(examined):
    def narrow(body: Mapping[str, Any]) -> str:
        return talk({name: value for name, value in body.items() if name != "seed" or body.get("top_k") != 1})

    with Server(reply=narrow) as server:
        assert examined({"target": served(server, top_k=True)})["top_k"].state == "ok"
    with Server(reply=talk) as server:
        assert "Cure: target.top_k=false" in examined({"target": served(server, top_k=True)})["error"]
        assert "error" not in examined({"target": served(server), "judge": served(server, top_k=True)})


def test_noise_at_temperature_0_is_measured(examined):
    with Server(reply=talk, ignores=("temperature",)) as server:
        found = examined({"target": served(server)})
    assert found["temperature_0"].state == "failed"
    assert "2 of 3 repeats disagree" in found["temperature_0"].got
    assert found["seed"].state == "ignored"


def test_a_system_prompt_that_the_server_adds_is_seen_in_its_count_of_tokens(examined):
    with Server(reply=talk) as server:
        assert "none is added" in examined({"target": served(server)})["system_prompt"].got
        server.injects = True  # type: ignore[attr-defined]
        assert "the server adds its own" in examined({"target": served(server)})["system_prompt"].got
        given = examined({"target": served(server, system="You are terse.")})
        assert given["system_prompt"].got.startswith('sent: "You are terse."')
        assert '"role": "system", "content": "You are terse."' in given["prompt"].got


def test_a_length_limit_and_a_reason_for_stopping_that_lie(examined, monkeypatch):
    real = Handler._completion

    def lying(self: Handler, what: str, body: dict[str, Any], attempt: int) -> dict[str, Any]:
        done = real(self, what, {**body, "max_tokens": 500}, attempt)
        for choice in done["choices"]:
            choice["finish_reason"] = "stop"
        return done

    monkeypatch.setattr(Handler, "_completion", lying)
    with Server(reply=talk) as server:
        found = examined({"target": served(server)})
    assert (found["max_tokens"].state, found["stop_reason"].state) == ("ignored", "failed")
    assert "91 tokens where 6 were allowed" in found["max_tokens"].got


def test_a_server_that_is_not_there_is_asked_nothing_more(examined):
    with Server(reply=talk) as server:
        gone = server.url
    lm = OpenAI(model=Endpoint(name="gone", source="served", id="x", base_url=gone), attempts=1, wait_max=0.1)
    found = examined({"target": lm})
    assert [c.name for c in found["all"]] == ["reachable"]
    assert "gone (target): reachable failed" in found["error"]
    assert gone in found["error"]


def test_a_key_that_is_not_accepted_is_named_and_not_shown(examined, monkeypatch, tmp_path):
    monkeypatch.setenv("DOCTOR_KEY", "canary-5521")
    with Server(reply=talk, key="another") as server:
        found = examined({"target": served(server, key_variable="DOCTOR_KEY")})
    assert "DOCTOR_KEY was not accepted" in found["error"]
    assert "canary" not in found["error"] + found["screen"] + (tmp_path / "doctor" / "report.json").read_text()


def test_the_engine_is_asked_and_never_the_cache(examined, tmp_path):
    with Server(reply=talk) as server:
        lm = Cached(lm=served(server), responses=Responses(tmp_path / "lm.sqlite"), ledger=Ledger())
        first = examined({"target": lm})
        asked = len(server.log)
        again = examined({"target": lm, "writer": lm})
        assert len(server.log) - asked == asked > 10, "all of it was asked again, and once for both roles"
    assert first["reachable"].roles == ("target",)
    assert again["reachable"].roles == ("target", "writer")


def test_what_the_doctor_asks_is_in_the_ledger(examined):
    ledger = Ledger()
    with Server(reply=talk) as server:
        found = examined({"target": Cached(lm=served(server), responses=None, ledger=ledger)})
        sent = len(server.log)
    spent, (entry,) = found["summary"].metrics, ledger.entries
    assert entry.requests == spent["requests"].value
    assert 10 < entry.requests <= sent
    assert entry.read + entry.written == spent["tokens"].value > 0


def test_the_budget_stops_the_doctor_before_what_it_does_not_cover(examined):
    ledger = Ledger(Budget(tokens=400))
    with Server(reply=talk) as server, pytest.raises(BudgetError, match=r"raise budget\.tokens"):
        examined({"target": Cached(lm=served(server), responses=None, ledger=ledger)})
    (entry,) = ledger.entries
    assert 0 < entry.read + entry.written <= 400


def test_a_later_stage_does_not_start(tmp_path):
    with Server(reply=talk, ignores=("logprobs",)) as server:
        done = subprocess.run(
            [sys.executable, "-m", "evorefuse.run", "stages=[doctor,generate]", "tracker=files", "target=served",
             "target.id=scripted", f"target.base_url={server.url}", "doctor.effort={repeats: 2, requests: 1}"],
            cwd=Path(__file__).parents[1], env={**os.environ, "EVOREFUSE_OUTPUTS": str(tmp_path), "COLUMNS": "200"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "served (target): logprobs ignored" in done.stderr
    assert "Cure: target.logprobs=false" in done.stderr
    assert {path.name for path in (tmp_path / "demo" / "main").iterdir() if path.is_dir()} >= {"doctor"}
    assert not (tmp_path / "demo" / "main" / "generate").exists()
    assert read_json(tmp_path / "demo" / "main" / "doctor" / "summary.json")["metrics"]["unmet"]["value"] >= 1


def test_a_need_that_is_no_check_is_refused_at_once(examined, tmp_path):
    store = Store(tmp_path / "x")
    with pytest.raises(ValueError, match=r"'logprob'.*expected some of: reachable"):
        doctor.run(
            cfg=Settings(needs=("logprob",)), seed=1, models={}, store=store, tracker=Silent(), progress=Progress()
        )
    store.close()


@pytest.mark.parametrize("name", ["repeats", "requests", "max_tokens", "tolerance"])
def test_an_effort_that_finds_nothing_out_is_refused_when_it_is_composed(name):
    assert check(Settings, {"effort": {name: 1}}, key="doctor")
    with pytest.raises(ConfigError, match=rf"doctor\.effort.*{name} must be at least \d, got -1"):
        check(Settings, {"effort": {name: -1}}, key="doctor")
    if name != "tolerance":
        with pytest.raises(ConfigError, match="at least 1, got 0"):
            check(Settings, {"effort": {name: 0}}, key="doctor")


def test_what_a_model_says_is_shown_as_it_is(examined):
    talking = Scripted(replies=lambda request: Reply(text="[bold red]<b>[/]", finish="stop", usage=Usage()))
    found = examined({"writer": talking})
    assert "[bold red]<b>[/]" in found["screen"]
