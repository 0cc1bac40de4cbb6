"""conf/ mirrors the package: every node binds, every plug-in has its file, every experiment composes."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import evorefuse.run  # noqa: F401  (registers the resolver that conf/ uses)
from evorefuse.compose import Composer, ConfigError, locate
from evorefuse.ports import LM, Tracker
from evorefuse.signature import files_in

REPO = Path(__file__).parent.parent
CONF = REPO / "conf"
GROUPS = {"mutator": "mutator", "scorer": "scorer", "fitness": "fitness", "source": "source", "embedder": "embedder",
          "tracker": "tracker", "engine": "lm"}  # fmt: skip
FOR_TESTS = {("engine", name) for name in ("scripted", "cached", "asker", "rehearsal")}  # no file, on purpose
STAGES = sorted(path.stem for path in (REPO / "evorefuse" / "stages").glob("[!_]*.py"))
OVERLAYS = ("experiment", "profile", "ablate")
OPTIONS = sorted((path.parent.relative_to(CONF).as_posix(), path.stem) for path in CONF.rglob("*.yaml"))
EXPERIMENTS = [name for group, name in OPTIONS if group == "experiment"]
MODELS = {name: OmegaConf.load(CONF / "target" / f"{name}.yaml") for group, name in OPTIONS if group == "target"}
KEYS = {name: model.key_variable for name, model in MODELS.items() if model.get("key_variable")}


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    """Keys for every model that wants one: nothing is sent here."""
    for variable in KEYS.values():
        monkeypatch.setenv(variable, "a-key")


def composed(*overrides: str) -> dict[str, Any]:
    """The plain configuration under these overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=["run_dir=/nowhere", *overrides])
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def plugins(folder: str) -> set[str]:
    """The modules of a plug-in folder that no other module in it imports."""
    modules = {path.stem: path.read_text("utf-8") for path in (REPO / "evorefuse" / folder).glob("[!_]*.py")}
    shared: set[str] = set()
    for source in modules.values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module:
                shared |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in modules if f"evorefuse.{folder}.{name}" not in shared}


def needs(config: dict[str, Any], stage: str) -> dict[str, Any]:
    return Composer(config).needs(stage, importlib.import_module(f"evorefuse.stages.{stage}").run)


def test_every_file_is_in_a_group_that_is_checked_here():
    assert {group for group, _ in OPTIONS} <= {".", "target", *GROUPS, *STAGES, *OVERLAYS}


@pytest.mark.parametrize("group", GROUPS)
def test_every_plug_in_has_its_file_and_the_reverse(group):
    named = {name for own, name in OPTIONS if own == group}
    modules = plugins(GROUPS[group]) - {name for own, name in FOR_TESTS if own == group}
    assert modules
    targets = {name: OmegaConf.load(CONF / group / f"{name}.yaml")["_target_"].split(".")[:3] for name in named}
    assert modules - {module for _, _, module in targets.values()} == set(), "plug-ins without a file in conf/"
    for name, (package, folder, module) in targets.items():
        assert (package, folder) == ("evorefuse", GROUPS[group])
        assert module in modules
        assert name == module or name.startswith(f"{module}_"), f"conf/{group}/{name}.yaml names module {module}"


def test_every_stage_has_its_group_and_the_reverse():
    groups = {group for group, _ in OPTIONS}
    assert set(STAGES) <= groups
    assert groups - {".", "target", *GROUPS, *OVERLAYS} == set(STAGES)
    defaults = OmegaConf.load(CONF / "config.yaml").defaults
    chosen = {str(next(iter(entry))) for entry in defaults if not isinstance(entry, str)}
    assert set(STAGES) <= chosen


def probe(port: Any) -> Callable[..., None]:
    """A stage that needs one port, called probe."""

    def run(*, probe: Any) -> None:
        raise AssertionError

    run.__annotations__["probe"] = port
    return run


@pytest.mark.parametrize(("group", "name"), [option for option in OPTIONS if option[0] in {*GROUPS} - {"engine"}])
def test_every_plug_ins_file_binds(group, name):
    node = Composer(composed(f"+{group}@probe={name}")).needs("test", probe(Any))["probe"]
    assert isinstance(locate(node["_target_"]), type)


@pytest.mark.parametrize(("override", "name"), [*((f"target={name}", name) for name in KEYS), ("mutator=llm", "gpt4o")])
def test_a_model_whose_key_is_not_at_hand_is_refused_by_the_name_of_its_variable(override, name, monkeypatch):
    monkeypatch.delenv(KEYS[name])
    with pytest.raises(ConfigError, match=rf"{name!r}.*{KEYS[name]}, which is not set: export {KEYS[name]}=…"):
        needs(composed(override), "generate")


@pytest.mark.parametrize(("group", "name"), [option for option in OPTIONS if option[0] in ("engine", "target")])
def test_every_model_and_engine_bind(group, name):
    def run(*, target: LM) -> None:
        raise AssertionError

    served = ["target=served"] if (group, name) == ("engine", "openai") else []
    node = Composer(composed(f"{group}={name}", *served)).needs("test", run)["target"]
    assert {"_target_", "model"} <= set(node)
    if group == "target":
        assert node["model"]["name"] == name


@pytest.mark.parametrize(("stage", "name"), [option for option in OPTIONS if option[0] in STAGES])
def test_every_stages_file_fits_its_settings(stage, name):
    assert stage in needs(composed(f"{stage}={name}"), stage)


def test_a_wrong_key_in_any_stage_would_be_seen():
    for stage in STAGES:
        with pytest.raises(ConfigError, match=rf"unknown key {stage}\.typo"):
            needs(composed(f"+{stage}.typo=1"), stage)


@pytest.mark.parametrize(("group", "name"), [("", ""), *(option for option in OPTIONS if option[0] in OVERLAYS)])
def test_every_experiment_and_overlay_composes_and_binds(group, name):
    config = composed(*([f"+{group}={name}"] if name else []))
    assert config["stages"]
    for stage in config["stages"]:
        assert "???" not in str(needs(config, stage)), "a value is missing"
    assert Composer({**config, "probe": config["tracker"]}).needs("test", probe(Tracker))
    if group == "experiment":
        assert re.search(rf"^name: {name}\b", (CONF / "experiment" / f"{name}.yaml").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", ["", *EXPERIMENTS])
def test_a_run_reads_its_own_files_whatever_it_is_called(name, tmp_path):
    """What stands in a run folder is the run's own: the same experiment under another name is another run."""
    config = composed(*([f"+experiment={name}"] if name else []), "name=other", f"outputs={tmp_path}")
    named = [path for stage in config["stages"] for _, path in files_in(needs(config, stage))]
    assert [path for path in named if path.startswith(str(tmp_path))] == []
    if "benchmark" in config["stages"] and name != "guard":
        assert "/nowhere/generate/evolved/instructions.jsonl" in named


def test_the_instructions_of_another_run_are_named_by_one_key():
    where = "outputs/joint/main/generate/evolved"
    config = composed("+experiment=joint", "instructions_from=outputs/joint/main", "cell=own")
    named = dict(files_in(needs(config, "benchmark")))
    assert named["benchmark.sets.evolved.path"] == f"{where}/instructions.jsonl"
    assert named["benchmark.sets.candidates.path"] == f"{where}/candidates.jsonl"
    assert "/nowhere" not in str(named)
    assert needs(config, "publish")["publish"]["instructions"] == f"{where}/instructions.jsonl"


def test_licences_and_bounds_take_any_key_without_a_plus():
    licences, bounds = "publish.licences={my.csv: CC-BY-4.0}", "report.expected={a/b: [0.1, null]}"
    assert composed(licences)["publish"]["licences"] == {"my.csv": "CC-BY-4.0"}
    assert composed(bounds)["report"]["expected"] == {"a/b": [0.1, None]}
    both = composed("+experiment=build_test", licences, bounds)
    assert both["publish"]["licences"] == {"my.csv": "CC-BY-4.0"}
    assert {"a/b", "publish/kept"} <= set(both["report"]["expected"])
    with pytest.raises(ConfigCompositionException, match=r"publish\.typo"):
        composed("publish.typo=1")


def test_experiments_have_their_readers_half():
    folders = sorted(
        path.name for path in (REPO / "experiments").iterdir() if path.is_dir() and path.name[0] not in "._"
    )
    assert folders == sorted(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_readme_says_how_to_run_and_what_it_names_is_there(name):
    folder = REPO / "experiments" / name
    readme = (folder / "README.md").read_text("utf-8")
    assert f"+experiment={name}" in readme
    for file in re.findall(r"`(expected\.yaml|results\.json|figure\w*\.\w+)`", readme):
        assert (folder / file).is_file(), f"experiments/{name}/README.md names {file}"


def test_every_file_begins_by_saying_what_it_is():
    assert [f"{g}/{n}" for g, n in OPTIONS if not (CONF / g / f"{n}.yaml").read_text("utf-8").startswith("#")] == []


def test_the_entry_point_imports_nothing_heavy():
    heavy = ("torch", "transformers", "trl", "peft", "datasets", "scipy", "sklearn", "matplotlib", "wandb", "openai")
    code = f"import sys, evorefuse.run; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_the_groups_and_the_commands():
    done = subprocess.run(
        [sys.executable, "-m", "evorefuse.run", "--help"], capture_output=True, text=True, check=False, cwd=REPO
    )
    assert done.returncode == 0, done.stderr
    for word in ("+experiment=smoke", "resumes", *GROUPS, *STAGES):
        assert word in done.stdout
