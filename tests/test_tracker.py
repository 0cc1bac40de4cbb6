"""The trackers: plain files, and W&B offline (nothing here reaches a network)."""

import json

import pytest
import yaml

import evorefuse.tracker.wandb as module
from evorefuse.ports import Tracker
from evorefuse.records import Metric, Summary
from evorefuse.store import ConflictError
from evorefuse.tracker.files import Files
from evorefuse.tracker.wandb import Wandb, clean

SUMMARY = Summary(stage="benchmark", metrics={"seeds/refused": Metric(value=0.5, n=4, low=0.2, high=0.8),
                                              "empty": Metric(value=None, n=0)})  # fmt: skip


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def use(tracker, folder):
    """Every method once; ``folder`` is the run folder."""
    page = folder / "report.html"
    page.write_text("<p>hello</p>")
    tracker.start(name="demo/a", config={"seed": 1, "judge": {"api_key": "sk-123"}}, folder=str(folder))
    for step in range(3):
        tracker.log("generate/evolved", {"t": step, "best_fitness": -2.0 + step, "bad": float("nan")}, step=step)
    tracker.log("notes", {"x": 1})
    tracker.table("benchmark/sets", ["set", "value"], [("seeds", 0.5), ("none", None), (3, float("inf"))])
    tracker.summary(SUMMARY)
    tracker.artifact("report", "report", [str(page)])
    tracker.finish()
    tracker.finish()


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_are_trackers():
    assert isinstance(Files(), Tracker)
    assert isinstance(Wandb(), Tracker)


def test_files(tmp_path):
    use(Files(), tmp_path)
    folder = tmp_path / "tracker"
    first, *_, last = rows(folder / "metrics.jsonl")
    assert first == {"namespace": "generate/evolved", "step": 0, "t": 0, "best_fitness": -2.0, "bad": None}
    assert last == {"namespace": "notes", "step": None, "x": 1}
    assert rows(folder / "tables" / "benchmark" / "sets.jsonl")[0] == {"set": "seeds", "value": 0.5}
    assert json.loads((folder / "summary.json").read_text())["benchmark"]["metrics"]["seeds/refused"]["n"] == 4
    assert rows(folder / "artifacts.jsonl")[0]["kind"] == "report"
    assert "sk-123" not in "".join(path.read_text() for path in folder.rglob("*.json*"))


def test_files_go_on_after_a_kill(tmp_path):
    use(Files(), tmp_path)
    path = tmp_path / "tracker" / "metrics.jsonl"
    path.write_text(path.read_text() + '{"namespace": "to')
    use(Files(), tmp_path)
    assert len(rows(path)) == 8


def test_files_refuse_a_folder_in_use(tmp_path):
    first = Files()
    first.start(name="a", config={}, folder=str(tmp_path))
    with pytest.raises(ConflictError):
        Files().start(name="a", config={}, folder=str(tmp_path))
    first.finish()
    Files().start(name="a", config={}, folder=str(tmp_path))


@pytest.mark.parametrize("tracker", [Files(), Wandb()])
def test_before_the_start_nothing_happens(tracker):
    tracker.log("a", {"b": 1}, step=1)
    tracker.table("a", ["b"], [[1]])
    tracker.summary(SUMMARY)
    tracker.artifact("a", "b", [])
    tracker.finish()


def test_wandb_is_offline_without_an_account_and_quiet(tmp_path, capfd):
    tracker = Wandb()
    assert tracker.mode == "offline"
    use(tracker, tmp_path)
    assert tracker.n_failed == 0
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    data = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"generate/evolved/best_fitness" in data
    assert b"benchmark/seeds/refused" in data
    assert b"sk-123" not in data
    out = capfd.readouterr()
    assert out.out + out.err == ""


def test_account_makes_it_online(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    netrc.write_text("machine other.example\n login user\n password x\n")
    assert Wandb().mode == "offline"
    netrc.write_text("machine wandb.example\n login user\n password x\n")
    assert Wandb().mode == "online"
    netrc.write_text("machine")
    assert Wandb().mode == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert Wandb().mode == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert Wandb().mode == "disabled"
    assert Wandb(mode="offline").mode == "offline"


def test_unknown_mode():
    with pytest.raises(ValueError, match="expected auto, online, offline or disabled"):
        Wandb(mode="on")


class Run:
    """A run that records, or breaks on every call."""

    id = "abc"

    def __init__(self, *, broken=False):
        self.broken, self.calls = broken, []
        self.summary = self

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if self.broken:
                raise ConnectionError("[no] network")
            self.calls.append((name, args, kwargs))

        return call


def test_metrics_have_their_own_steps(tmp_path, monkeypatch):
    run = Run()
    monkeypatch.setattr(module.wandb, "init", lambda **_: run)
    use(Wandb(mode="offline"), tmp_path)
    defined = [(args, kwargs) for name, args, kwargs in run.calls if name == "define_metric"]
    assert defined == [
        (("generate/evolved/step",), {"hidden": True}),
        (("generate/evolved/*",), {"step_metric": "generate/evolved/step"}),
    ]
    logs = [(args, kwargs) for name, args, kwargs in run.calls if name == "log"]
    assert all(not kwargs for _, kwargs in logs)
    assert logs[1][0][0] == {"generate/evolved/t": 1, "generate/evolved/best_fitness": -1.0, "generate/evolved/step": 1}
    assert [name for name, *_ in run.calls].count("finish") == 1


def test_broken_wandb_never_ends_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.wandb, "init", lambda **_: Run(broken=True))
    tracker = Wandb(mode="offline")
    use(tracker, tmp_path)
    assert tracker.n_failed == 10
    shown = capsys.readouterr().err
    assert "W&B: log failed: [no] network" in shown
    assert "10 calls failed" in shown


def test_wandb_that_cannot_start_says_so(tmp_path, monkeypatch):
    def refuse(**_):
        raise ConnectionError("no network")

    monkeypatch.setattr(module.wandb, "init", refuse)
    with pytest.raises(ConnectionError, match=r"could not start.*no network.*tracker\.mode=offline or tracker=files"):
        Wandb(mode="online").start(name="a", config={}, folder=str(tmp_path))


def test_secrets_stay_out():
    config = {
        "max_tokens": 50, "api_key": "s", "a": [{"hf_token": "s", "password": None}], "openai.api-key": "s",
        "url": "https://user:pw@host/v1", "key": 3,
    }  # fmt: skip
    assert clean(config) == {
        "max_tokens": 50, "api_key": "<hidden>", "a": [{"hf_token": "<hidden>", "password": None}],
        "openai.api-key": "<hidden>", "url": "https://<hidden>@host/v1", "key": 3,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [Files, Wandb])
def test_the_yaml_names_the_class(kind):
    name = kind.__name__.lower()
    with open(f"conf/tracker/{name}.yaml", encoding="utf-8") as file:
        given = yaml.safe_load(file)
    assert given.pop("_target_") == f"evorefuse.tracker.{name}.{kind.__name__}"
    assert isinstance(kind(**given), Tracker)
