"""From plain configuration to ports: what does not fit is refused at once, by name."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from evorefuse.compose import Composer, ConfigError, check, locate
from evorefuse.ports import LM, Mutator, Scorer, Source, Tracker
from evorefuse.progress import Progress
from evorefuse.run import execute, inputs
from evorefuse.signature import at_home, expect_files, files_in
from evorefuse.store import Store

BUILT: list[str] = []


@pytest.fixture(autouse=True)
def _forget():
    BUILT.clear()


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Nested settings."""

    depth: int = 1
    pair: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A stage's settings."""

    steps: int
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    weight: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Stands for a model."""

    model: Inner
    device: str = "cpu"

    def __post_init__(self) -> None:
        BUILT.append("engine")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Needs a model."""

    target: LM
    floor: float = 0.1

    def __post_init__(self) -> None:
        BUILT.append("judge")


@dataclass(frozen=True, kw_only=True)
class Words:
    """A source; also stands for a mutator."""

    path: str
    size: int = 3

    def __post_init__(self) -> None:
        BUILT.append(f"words {self.path}")


def run(
    *, cfg: Settings, seed: int, target: LM, safety: Scorer, refusal: Scorer, sets: Mapping[str, Source], store: Store,
    tracker: Tracker, progress: Progress,
) -> None:  # fmt: skip
    """A stage."""


ME = __name__


def config(**changes: Any) -> dict[str, Any]:
    """A configuration that fits."""
    words = {"_target_": f"{ME}.Words", "path": "a"}
    return {
        "seed": 1,
        "engine": {"_target_": f"{ME}.Engine"},
        "target": {"depth": 2},
        "safety": {"_target_": f"{ME}.Judge"},
        "refusal": {"_target_": f"{ME}.Judge", "floor": 0.2},
        "stage": {"steps": 3, "sets": {"first": words, "second": {**words, "path": "b"}, "third": dict(words)}},
        **changes,
    }


def refused(match: str, **changes: Any) -> None:
    """Assert that the configuration is refused before anything is built."""
    with pytest.raises(ConfigError, match=match):
        Composer(config(**changes)).needs("stage", run)
    assert BUILT == []


def test_what_fits_is_built_and_shared():
    made = Composer(config()).arguments("stage", run)
    assert list(made) == ["cfg", "seed", "target", "safety", "refusal", "sets"]
    assert made["cfg"] == Settings(steps=3)
    assert made["target"].model == Inner(depth=2)
    assert made["safety"].target is made["refusal"].target is made["target"]
    assert made["safety"] is not made["refusal"]
    assert list(made["sets"]) == ["first", "second", "third"]
    assert made["sets"]["first"] is made["sets"]["third"]
    assert BUILT == ["engine", "judge", "judge", "words a", "words b"]


def test_two_stages_share_one_model():
    composer = Composer(config(other={"steps": 1, "sets": {}}))
    first, second = composer.arguments("stage", run), composer.arguments("other", run)
    assert first["target"] is second["target"]
    assert BUILT.count("engine") == 1


def test_needs_names_what_decides_the_results_and_builds_nothing():
    found = Composer(config(unrelated={"x": 1})).needs("stage", run)
    assert list(found) == ["stage", "seed", "target", "safety", "refusal", "stage.sets"]
    assert found["stage"] == {"steps": 3}
    assert found["target"] == {"_target_": f"{ME}.Engine", "model": {"depth": 2}}
    assert BUILT == []


def test_a_stages_own_role_goes_before_the_common_one():
    own = {"steps": 3, "sets": {}, "safety": {"_target_": f"{ME}.Judge", "floor": 0.7}}
    composer = Composer(config(stage=own))
    made = composer.arguments("stage", run)
    assert (made["safety"].floor, made["refusal"].floor) == (0.7, 0.2)
    assert composer.needs("stage", run)["stage.safety"]["floor"] == 0.7
    assert composer.needs("stage", run)["stage"] == {"steps": 3}


@pytest.mark.parametrize(
    ("stage", "match"),
    [
        ({"steps": 3, "stepz": 4, "sets": {}}, r"unknown key stage\.stepz; did you mean 'steps'\?"),
        ({"steps": "three", "sets": {}}, r"stage\.steps: .*integer.*'three'"),
        ({"steps": 1.5, "sets": {}}, r"stage\.steps"),
        ({"steps": None, "sets": {}}, r"stage\.steps"),
        ({"sets": {}}, r"stage\.steps: Field required"),
        ({"steps": 3, "inner": {"deep": 1}, "sets": {}}, r"unknown key stage\.inner\.deep; did you mean 'depth'"),
        ({"steps": 3, "inner": {"depth": "x"}, "sets": {}}, r"stage\.inner\.depth"),
        ({"steps": 3, "inner": 4, "sets": {}}, r"stage\.inner"),
        ({"steps": 3, "many": [{}, {"dept": 1}], "sets": {}}, r"unknown key stage\.many\.1\.dept"),
        ({"steps": 3, "inner": {"pair": ["a"]}, "sets": {}}, r"stage\.inner\.pair"),
        ({"steps": 3, "sets": {"first": {"_target_": f"{ME}.Words"}}}, r"stage\.sets\.first: Words needs path"),
        ({"steps": 3, "sets": {"first": {"_target_": f"{ME}.Words", "pth": "a"}}}, r"stage\.sets\.first\.pth; did you"),
        ({"steps": 3, "sets": {"first": {"path": "a"}}}, r"stage\.sets\.first"),
        ({"steps": 3, "sets": {"first": None}}, r"stage\.sets\.first"),
        ({"steps": 3, "sets": "a.jsonl"}, r"stage\.sets"),
        ("three", "stage must be a mapping"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused_by_name(stage, match):
    refused(match, stage=stage)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"seed": "one"}, "seed.*'one'"),
        ({"safety": {"_target_": f"{ME}.Judge", "floor": "low"}}, r"safety\.floor.*'low'"),
        ({"safety": {"_target_": f"{ME}.Judge", "flor": 1}}, r"unknown key safety\.flor; did you mean 'floor'"),
        ({"safety": {"_target_": f"{ME}.Jury"}}, "cannot load .*Jury"),
        ({"safety": {"_target_": "evorefuse.scorer.nothing.Nothing"}}, "cannot load"),
        ({"safety": {"_target_": "Judge"}}, "cannot load 'Judge'"),
        ({"safety": {"floor": 0.1}}, "safety.*_target_"),
        ({"safety": None}, "safety"),
        ({"target": {"dept": 1}}, r"unknown key target\.model\.dept; did you mean 'depth'"),
        (
            {"engine": {"_target_": f"{ME}.Engine", "devise": "cpu"}},
            r"unknown key target\.devise; did you mean 'device'",
        ),
    ],
)
def test_a_role_that_does_not_fit_is_refused_by_name(changes, match):
    refused(match, **changes)


@pytest.mark.parametrize("name", ["seed", "safety", "target", "engine", "stage"])
def test_a_missing_role_is_named(name):
    whole = config()
    del whole[name]
    with pytest.raises(ConfigError, match=f"no '{name}'"):
        Composer(whole).needs("stage", run)


def test_roles_inside_roles_are_checked_too():
    refused(r"target\.device", engine={"_target_": f"{ME}.Engine", "device": ["a"]})

    def lone(*, refusal: Scorer) -> None:
        """Needs a target through its judge."""

    without = config()
    del without["target"]
    with pytest.raises(ConfigError, match="no 'target'"):
        Composer(without).needs("stage", lone)
    assert set(Composer(config()).needs("stage", lone)) == {"refusal", "target"}


def test_values_of_plain_types_are_checked():
    assert check(Sequence[int], [1, 2], key="k") == [1, 2]
    assert check(tuple[tuple[str, str], ...], [["a", "b"]], key="k") == (("a", "b"),)
    with pytest.raises(ConfigError, match=r"k\.1"):
        check(Sequence[int], [1, "x"], key="k")
    assert locate("evorefuse.compose.Composer") is Composer
    assert issubclass(ConfigError, ValueError)


def test_a_port_is_built_by_name():
    made = Composer(config(tracker={"_target_": f"{ME}.Words", "path": "t"})).build("tracker")
    assert made == Words(path="t")
    with pytest.raises(ConfigError, match="no 'mutator'"):
        Composer(config()).build("mutator")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"typo": 1}, "unknown key typo"),
        ({"stagse": []}, "did you mean 'stages'"),
        ({"stages": ["genrate"]}, "genrate"),
    ],
)
def test_an_unknown_key_or_stage_at_the_top_stops_a_run_before_any_work(tmp_path, changes, match):
    base = {"name": "x", "cell": "y", "seed": 1, "stages": [], "run_dir": str(tmp_path / "run"), **changes}
    with pytest.raises(ConfigError, match=match):
        execute(base, Progress(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_ports_are_known_by_their_types():
    assert {LM, Mutator, Scorer, Source, Tracker} <= __import__("evorefuse.compose", fromlist=["PORTS"]).PORTS


SOURCE = {"_target_": "evorefuse.source.jsonl.File", "path": "mine.jsonl", "where": {"path": "no.jsonl"}}
NODES = {
    "publish": {"instructions": "out/x.jsonl", "title": "a/b.json", "push_to": "me/a.json", "licences": {"b.csv": "x"}},
    "benchmark": {"auc": [["a/b.jsonl", "c"]], "batch": 3},
    "mitigate": {"pairs": "builtin:guard"},
    "benchmark.sets": {"one": SOURCE, "hub": {"_target_": "evorefuse.source.hub.Hub", "id": "a/b.csv", "split": "a/b"}},
    "refusal": {"_target_": "evorefuse.scorer.classifier.Classifier", "model": "fit.json"},
    "safety": {"_target_": "evorefuse.scorer.rules.Rules", "vetted": ["shipped.jsonl", "own/more.txt"]},
    "target": {"_target_": "evorefuse.lm.hf.HF", "model": {"id": "a/b.json", "adapter": "a/b"}},
}  # fmt: skip


def test_files_are_known_by_their_keys_or_looks_and_names_on_the_hub_are_none():
    assert dict(files_in(NODES)) == {
        "publish.instructions": "out/x.jsonl",
        "benchmark.sets.one.path": "mine.jsonl",
        "refusal.model": "fit.json",
        "safety.vetted": "own/more.txt",
    }
    other = {"scorer": {"_target_": "x.Y", "model": "gpt", "url": "http://a/b.json", "words": "a/b.txt"}}
    assert files_in(other) == [("scorer.words", "a/b.txt")]


def test_a_file_must_be_there_unless_the_run_will_write_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"seeds": {**SOURCE, "path": str(tmp_path / "run" / "generate" / "x.jsonl")}}
    expect_files(own, run_dir=str(tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"seeds\.path: no file at"):
        expect_files(own, run_dir=str(tmp_path / "ru"))
    with pytest.raises(ConfigError, match=r"seeds\.path: no file at mine\.jsonl"):
        expect_files({"seeds": SOURCE}, run_dir=str(tmp_path / "run"))
    (tmp_path / "mine.jsonl").write_text("{}\n", encoding="utf-8")
    expect_files({"seeds": SOURCE}, run_dir=str(tmp_path / "run"))


def test_the_files_that_are_there_are_hashed_and_the_packages_data_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = inputs(NODES)
    assert list(ours) == ["evorefuse/data"]
    assert len(ours["evorefuse/data"]) == 64
    (tmp_path / "mine.jsonl").write_text("{}\n", encoding="utf-8")
    digest = hashlib.sha256(b"{}\n").hexdigest()
    assert inputs(NODES) == ours | {"mine.jsonl": digest}


def test_the_home_folder_is_put_for_its_sign_in_files_alone(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"judge": {"human": "~/a.jsonl"}, "sets": [{"path": "~/b"}], "title": "~/c.csv", "system": "~ yes"}
    assert at_home(given) == {
        "judge": {"human": "/home/me/a.jsonl"}, "sets": [{"path": "/home/me/b"}], "title": "~/c.csv", "system": "~ yes",
    }  # fmt: skip
