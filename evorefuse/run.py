"""The composition root: configuration → settings and ports, by each stage's signature → stages.

    python -m evorefuse.run                          the main job on the embedded model
    python -m evorefuse.run +experiment=smoke        a shipped experiment
    python -m evorefuse.run -m seed=1,2,3            a sweep
    python -m evorefuse.run dry_run=true             what it would ask and cost, before anything is spent

The only file that knows Hydra.
"""

import hashlib
import importlib
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from evorefuse.compose import Composer, ConfigError, check, expect_keys, identities, locate, parameters, services
from evorefuse.estimate import estimate
from evorefuse.ledger import Budget, BudgetError, Ledger, line, totals
from evorefuse.ports import Tracker
from evorefuse.progress import Progress
from evorefuse.records import Summary
from evorefuse.roles import models_in
from evorefuse.signature import at_home, expect_files, files_in
from evorefuse.store import ConflictError, Store

ROOT = Path(__file__).resolve().parents[1]
STAGES = tuple(sorted(path.stem for path in (ROOT / "evorefuse" / "stages").glob("[!_]*.py")))
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "hydra-core", "numpy", "scipy", "wandb", "openai")
EXPECTED_FAULTS = (ConfigError, ConflictError, ValueError, FileNotFoundError, PermissionError, OSError, MemoryError)


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """A folder for this process that goes with it."""
    return tempfile.TemporaryDirectory(prefix="evorefuse-dry-run-")


def _unless_dry(path: str, dry_run: object) -> str:
    """``path``, or in a dry run a folder that is thrown away."""
    return _scratch().name if dry_run is True else path


OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
OmegaConf.register_new_resolver("unless_dry", _unless_dry, replace=True)
_OPEN = OmegaConf.create({"publish": {"licences": {}}, "report": {"expected": {}}})  # take any key without a +
for _node in (_OPEN.publish.licences, _OPEN.report.expected):
    OmegaConf.set_struct(_node, False)
ConfigStore.instance().store(name="open", node=_OPEN)


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
def main(config: DictConfig) -> None:
    """Run the configured stages in order; a fault that the user can mend is one clear line."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\..*")  # of its own making
    progress = Progress()
    try:
        execute(_resolved(config), progress)
    except KeyboardInterrupt:
        folder = HydraConfig.get().runtime.output_dir
        progress.say(f"\nInterrupted. What was measured is safe in {folder}; run the same command again to go on.")
        raise SystemExit(130) from None
    except BudgetError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        progress.say(str(error), style="bold yellow")
        raise SystemExit(3) from None
    except EXPECTED_FAULTS as error:
        if os.environ.get("HYDRA_FULL_ERROR") or HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        progress.say(f"error: {error}", style="bold red")
        raise SystemExit(2) from error


def _resolved(config: DictConfig) -> dict[str, Any]:
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value yet: give {error.full_key}=…") from None
    except InterpolationResolutionError as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from None


def execute(config: Mapping[str, Any], progress: Progress) -> dict[str, Summary]:
    """Run all stages of a resolved configuration; their summaries by name (none of a dry run).

    All of it is checked before any work begins.

    Raises:
        ConfigError: where the configuration does not fit.
        ConflictError: where the folder holds another configuration's results.
        BudgetError: where the budget is spent; the same run with a larger one goes on.
    """
    expect_keys(config, _known_keys(), where="")
    config = at_home(config)
    modules = {name: _stage(name) for name in check(list[str], config["stages"], key="stages")}
    budget = check(Budget, config.get("budget", {}), key="budget")
    if check(bool, config.get("dry_run", False), key="dry_run"):
        estimate(config, modules, budget=budget, progress=progress)
        return {}
    runs = {name: module.run for name, module in _asking(modules, config).items()}
    needs = {name: Composer(config, stages=runs).needs(name, module.run) for name, module in modules.items()}
    for own in needs.values():
        expect_files(own, run_dir=config["run_dir"])
    folder = Path(config["run_dir"])
    paying = Store(folder) if any(_is_served(own) for own in needs.values()) else None
    ledger = Ledger(budget, store=paying)
    composer = Composer(config, stages=runs, ledger=ledger)
    try:
        return _run_stages(modules, needs=needs, composer=composer, ledger=ledger, progress=progress, config=config)
    finally:
        composer.close()
        if paying is not None:
            ledger.save()
            paying.close()


def _run_stages(
    modules: Mapping[str, ModuleType],
    *,
    needs: Mapping[str, Any],
    composer: Composer,
    ledger: Ledger,
    progress: Progress,
    config: Mapping[str, Any],
) -> dict[str, Summary]:
    folder = Path(config["run_dir"])
    tracker = cast(Tracker, composer.build("tracker"))
    done: dict[str, Summary] = {}
    tracker.start(name=_title(config), config=config, folder=str(folder))
    try:
        for name, module in modules.items():
            progress.say(f"── {name} → {folder / name}", style="dim")
            ledger.begin(name)
            try:
                done[name] = _run_stage(
                    name, module, needs=needs[name], composer=composer, ledger=ledger, tracker=tracker,
                    progress=progress, folder=folder,
                )  # fmt: skip
            finally:
                _show(ledger, name, tracker=tracker, progress=progress)
    finally:
        tracker.finish()
    return done


def _run_stage(
    name: str,
    module: ModuleType,
    *,
    needs: Mapping[str, Any],
    composer: Composer,
    ledger: Ledger,
    tracker: Tracker,
    progress: Progress,
    folder: Path,
) -> Summary:
    store = Store(folder / name)
    try:
        facts = {"stage": name, **_facts(needs)}
        derived = bool(getattr(module, "DERIVED", False))
        store.claim(needs, facts=facts, derived=derived)
        arguments = composer.arguments(name, module.run)
        store.identify(identities(arguments), derived=derived)
        offered = services(module.run, store=store, tracker=tracker, progress=progress)
        summary: Summary = module.run(**arguments, **offered)
        store.write_json("summary.json", summary)
        tracker.summary(summary)
        asked = [entry for entry in ledger.entries if entry.stage == name]
        store.complete(
            end=_now(),
            n={key: metric.n for key, metric in summary.metrics.items()},
            n_unscored={key: metric.n_unscored for key, metric in summary.metrics.items() if metric.n_unscored},
            **({"asked": asked} if asked else {}),
        )
        return summary
    finally:
        store.close()


def _show(ledger: Ledger, stage: str, *, tracker: Tracker, progress: Progress) -> None:
    """Say what a stage asked of each served model, and log the run's totals."""
    for entry in ledger.entries:
        if entry.stage == stage:
            progress.say(line(entry), style="dim")
    sums = totals(ledger.entries)
    figures = ("requests", "read", "written", "usd", "cached_requests", "cached_usd", "errors")
    if sums:
        tracker.log("ledger", {f"{m}/{name}": float(getattr(e, name)) for m, e in sums.items() for name in figures})


def _asking(modules: Mapping[str, ModuleType], config: Mapping[str, Any]) -> Mapping[str, ModuleType]:
    """The stages whose models the doctor looks at: this run's, or the main job's where none of this run's asks."""
    composer = Composer(config)
    others = {name: module for name, module in modules.items() if "models" not in parameters(module.run)}
    if len(others) == len(modules) or any(composer.models(name, module.run) for name, module in others.items()):
        return others
    return {name: _stage(name) for name in OmegaConf.load(ROOT / "conf" / "config.yaml").stages}


def _title(config: Mapping[str, Any]) -> str:
    """The run folder within the outputs, such as `demo/seed=2`; of one elsewhere its own name under the run's."""
    folder = Path(config["run_dir"]).absolute()
    outputs = Path(config.get("outputs") or folder).absolute()
    inside = folder != outputs and folder.is_relative_to(outputs)
    return folder.relative_to(outputs).as_posix() if inside else f"{config['name']}/{folder.name}"


def _is_served(needs: Mapping[str, Any]) -> bool:
    """Whether a stage asks a model behind a server."""
    return any(hasattr(locate(node["_target_"]), "stream") for node in models_in(needs).values())


def _known_keys() -> list[str]:
    """The top-level keys: those of config.yaml, its groups' packages and the settings of runs."""
    config = OmegaConf.load(ROOT / "conf" / "config.yaml")
    groups = [next(iter(entry)) for entry in config.defaults if not isinstance(entry, str)]
    packages = [str(group).removeprefix("optional ").partition("@")[2] or str(group) for group in groups]
    return [*packages, *(str(key) for key in config if key not in ("defaults", "hydra"))]


def _stage(name: str) -> ModuleType:
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r} in stages (there are: {', '.join(STAGES)})")
    return importlib.import_module(f"evorefuse.stages.{name}")


def _facts(needs: Mapping[str, Any]) -> dict[str, Any]:
    """What describes but does not decide a run."""
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "start": _now(),
        "commit": commit or None,
        "dirty": bool(dirty.strip()),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": {"machine": platform.machine(), "processor": platform.processor(), "cpus": os.cpu_count()},
        "inputs": inputs(needs),
    }


def inputs(nodes: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of every file that the configuration names and that is there, and of the package's data as one."""
    there = {path for _, path in files_in(nodes) if Path(path).is_file()}
    return {"evorefuse/data": _data()} | {path: _digest(Path(path)) for path in sorted(there)}


@cache
def _data() -> str:
    """SHA-256 over the names and the bytes of the package's data files."""
    folder = ROOT / "evorefuse" / "data"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
