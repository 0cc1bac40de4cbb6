"""Doctor: what every model of a run, and the server behind it, really does; asked of the engine, never of a cache.

What is asked counts for the budget like the rest of the run.

Writes `report.json` (every finding) and `summary.json`. Where a need of the run is unmet it ends in an error that names
the model, what is missing and the cure, so that the stages after it do not start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from evorefuse.checkup import local, served
from evorefuse.checkup.check import (
    Check,
    Effort,
    Patient,
    ending,
    log_probabilities,
    pace,
    randomness,
    reachable,
    shortened,
    steadiness,
)
from evorefuse.lm.cached import Cached
from evorefuse.lm.hf import HF
from evorefuse.lm.openai import OpenAI
from evorefuse.ports import LM, Tracker
from evorefuse.progress import Progress
from evorefuse.records import Metric, Summary
from evorefuse.store import Store

DERIVED = True  # a server may have changed since: it is asked anew every time
NEEDS = ("reachable", "prompt", "bos", "generation_prompt", "batch", "logprobs", "json", "sampling", "top_k")
STYLES = {"ok": "green", "ignored": "yellow", "failed": "red", "unknown": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the run rests on, and how much is asked.

    ``needs`` names the checks that stop the run where they fail; the others are only reported.
    """

    needs: tuple[str, ...] = NEEDS
    effort: Effort = field(default_factory=Effort)


def run(
    *, cfg: Settings, seed: int, models: Mapping[str, LM], store: Store, tracker: Tracker, progress: Progress
) -> Summary:
    """Examine every model that the stages of this run need, print the findings and write them down.

    Returns:
        The number of models, and of checks by their state; `unmet`, those that the run rests on; `requests`, `tokens`
        and `dollars` that it took (n: the models).

    Raises:
        ValueError: for a need that is no check; or, after everything is written, where a need is unmet, naming model,
            need and cure.
    """
    if unknown := set(cfg.needs) - set(NEEDS):
        raise ValueError(f"doctor.needs names {sorted(unknown)}; expected some of: {', '.join(NEEDS)}")
    patients = admit(models, cfg=cfg, seed=seed)
    with progress.task("doctor", total=len(patients)) as task:
        for patient in patients:
            examine(patient)
            task.advance(note=patient.name)
    checks = [check for patient in patients for check in patient.checks]
    summary = _summary(patients, checks)
    store.write_json("report.json", {"settings": cfg, "checks": checks})
    store.write_json("summary.json", summary)  # before the error below, which keeps the caller from writing it
    for table in tables(patients):
        progress.console.print(table)
    tracker.table(
        "doctor/checks",
        ["model", "roles", "check", "state", "needed", "got", "cure"],
        [(c.model, " ".join(c.roles), c.name, c.state, c.needed, c.got, c.cure) for c in checks],
    )
    if missing := [check for check in checks if check.missing]:
        raise ValueError("the doctor stops this run:" + "".join(f"\n  {_complaint(check)}" for check in missing))
    return summary


def admit(models: Mapping[str, LM], *, cfg: Settings, seed: int) -> list[Patient]:
    """One patient a model, whatever the number of its roles: the engine behind a cache, which pays for it."""
    roles: dict[int, list[str]] = {}
    engines: dict[int, LM] = {}
    purses: dict[int, Cached] = {}
    for role, model in models.items():
        engine: LM = model.lm if isinstance(model, Cached) else model
        engines[id(engine)] = engine
        roles.setdefault(id(engine), []).append(role)
        if isinstance(model, Cached):
            purses[id(engine)] = model
    return [
        Patient(
            lm=engine, name=str(engine.identity.get("name", "?")), roles=tuple(roles[key]), needs=cfg.needs, seed=seed,
            effort=cfg.effort, purse=purses.get(key),
        )
        for key, engine in engines.items()
    ]  # fmt: skip


def examine(patient: Patient) -> None:
    """Ask everything that can be asked of a model of this kind; one that does not answer is asked nothing more."""
    if not reachable(patient):
        return
    if isinstance(patient.lm, OpenAI):
        served.examine(patient, patient.lm)
    else:
        if isinstance(patient.lm, HF):
            local.examine(patient, patient.lm)
        log_probabilities(patient)
        randomness(patient)
    steadiness(patient)
    ending(patient)
    pace(patient, price=patient.lm.price if isinstance(patient.lm, OpenAI) else None)


def tables(patients: Sequence[Patient]) -> list[Table]:
    """The findings for people, a table a model; what a server or a person wrote is shown as it is, never as markup."""
    shown: list[Table] = []
    for patient in patients:
        title = Text(f"{patient.name} ({', '.join(patient.roles)})")
        table = Table("check", "", "found", "cure", title=title, title_justify="left")
        for check in patient.checks:
            state = Text(check.state + (" !" if check.missing else ""), style=STYLES[check.state])
            table.add_row(check.name, state, Text(check.got), Text(check.cure))
        shown.append(table)
    return shown


def _complaint(check: Check) -> str:
    got = shortened(check.got, limit=200)
    return f"{check.model} ({', '.join(check.roles)}): {check.name} {check.state}: {got}. Cure: {check.cure}"


def _summary(patients: Sequence[Patient], checks: Sequence[Check]) -> Summary:
    counts: dict[str, float] = {state: sum(check.state == state for check in checks) for state in STYLES}
    spent = {
        "requests": sum(patient.requests for patient in patients),
        "tokens": sum(patient.read + patient.written for patient in patients),
        "dollars": sum(_dollars(patient) for patient in patients),
    }
    metrics = {name: Metric(value=float(count), n=len(checks)) for name, count in counts.items()}
    metrics["unmet"] = Metric(value=float(sum(check.missing for check in checks)), n=len(checks))
    metrics |= {name: Metric(value=float(value), n=len(patients)) for name, value in spent.items()}
    notes = tuple(f"{c.model}: {c.name} {c.state}: {c.got}" for c in checks if c.state in ("ignored", "failed"))
    return Summary(stage="doctor", metrics=metrics, notes=notes)


def _dollars(patient: Patient) -> float:
    price = patient.lm.price if isinstance(patient.lm, OpenAI) else (0.0, 0.0)
    return (patient.read * price[0] + patient.written * price[1]) / 1e6
