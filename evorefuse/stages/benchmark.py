"""Benchmark: how often a target refuses each set of instructions, on fresh samples, with intervals.

Writes `journal.jsonl` (one batch a line), `trials.jsonl` (one Trial a line) and `summary.json`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from evorefuse import stats
from evorefuse.ports import LM, Scorer, Source, Tracker
from evorefuse.progress import Progress
from evorefuse.records import Instruction, Metric, Summary, Trial, Verdict, derive
from evorefuse.sampling import Sampling, draw
from evorefuse.store import ConflictError, Store, decode

Grouped = list[list[Verdict]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured.

    ``batch`` instructions are put to the target at a time (the unit of resuming). ``auc`` names pairs of an unsafe
    and a safe set, ``compare`` pairs of sets whose rates are subtracted, first minus second, paired by seed.
    """

    sampling: Sampling
    batch: int = 32
    auc: tuple[tuple[str, str], ...] = ()
    compare: tuple[tuple[str, str], ...] = ()


def run(
    *,
    cfg: Settings,
    seed: int,
    target: LM,
    refusal: Scorer,
    prefix: Scorer,
    sets: Mapping[str, Source],
    store: Store,
    tracker: Tracker,
    progress: Progress,
) -> Summary:
    """Put every set to the target and judge the replies twice: by ``refusal`` and, as PRR, by ``prefix``.

    An instruction in several sets is measured once and counts in each.

    Returns:
        By set: `full`, `refused` (full or partial), `prr`, `other`, and `p_refusal`, the mean probability of refusal;
        `refused` by strategy; `auc/<unsafe>-<safe>`; `compare/<first>-<second>` with its p-value.

    Raises:
        ValueError: where ``auc`` or ``compare`` names a set that is not there.
        ConflictError: where the journal was begun with other instructions.
    """
    missing = {name for pair in (*cfg.auc, *cfg.compare) for name in pair} - set(sets)
    if missing:
        raise ValueError(f"benchmark.auc or .compare names {sorted(missing)}, but the sets are {sorted(sets)}")
    members = {name: source.load() for name, source in sets.items()}
    trials = _measure(
        members, cfg=cfg, seed=seed, target=target, scorers=(refusal, prefix), store=store, progress=progress
    )
    store.write_jsonl("trials.jsonl", trials)
    summary = Summary(stage="benchmark", metrics=summarise(trials, members=members, cfg=cfg))
    tracker.table(
        "benchmark/sets",
        ["set", "metric", "value", "low", "high", "n", "n_unscored"],
        [(*name.rsplit("/", 1), m.value, m.low, m.high, m.n, m.n_unscored) for name, m in summary.metrics.items()],
    )
    return summary


def _measure(
    members: Mapping[str, Sequence[Instruction]],
    *,
    cfg: Settings,
    seed: int,
    target: LM,
    scorers: Sequence[Scorer],
    store: Store,
    progress: Progress,
) -> list[Trial]:
    """All trials, from the journal as far as it goes, then from the target."""
    sets_of: dict[str, list[str]] = {}
    unique: dict[str, Instruction] = {}
    for name, instructions in members.items():
        for instruction in instructions:
            unique.setdefault(instruction.id, instruction)
            sets_of.setdefault(instruction.id, []).append(name)
    todo = list(unique.values())
    journal = store.journal("journal.jsonl")
    trials = [decode(Trial, row) for done in journal.rows for row in done["trials"]]
    with progress.task("benchmark", total=len(todo)) as task:
        done = min(len(journal.rows) * cfg.batch, len(todo))
        known = [(trial.exchange.instruction.id, trial.sets) for trial in trials[:: cfg.sampling.samples]]
        if known != [(x.id, tuple(sets_of[x.id])) for x in todo[:done]]:
            raise ConflictError(
                f"{store.folder} was begun with other instructions: a set has changed since. "
                "Give this run another name=…, or delete the folder."
            )
        task.advance(done)
        for start in range(done, len(todo), cfg.batch):
            batch = todo[start : start + cfg.batch]
            drawn = draw(target, batch, sampling=cfg.sampling, seed=derive(seed, "benchmark"))
            exchanges = list(itertools.chain.from_iterable(drawn))
            judged = zip(*(scorer.score(exchanges) for scorer in scorers), strict=True)
            fresh = [
                Trial(sets=tuple(sets_of[x.instruction.id]), sample=i % cfg.sampling.samples, exchange=x, verdicts=v)
                for i, (x, v) in enumerate(zip(exchanges, judged, strict=True))
            ]
            journal.append({"trials": fresh})
            trials += fresh
            task.advance(len(batch))
    return trials


def summarise(
    trials: Sequence[Trial], *, members: Mapping[str, Sequence[Instruction]], cfg: Settings
) -> dict[str, Metric]:
    """All metrics of a benchmark from its trials; ``members`` says which instructions are in which set."""
    by_id: dict[str, list[Trial]] = {}
    for trial in trials:
        by_id.setdefault(trial.exchange.instruction.id, []).append(trial)
    metrics: dict[str, Metric] = {}
    for name, instructions in members.items():
        metrics |= {f"{name}/{key}": metric for key, metric in _rates(by_id, instructions).items()}
        strategies = sorted({instruction.strategy for instruction in instructions} - {"seed"})
        for strategy in strategies:
            own = [instruction for instruction in instructions if instruction.strategy == strategy]
            metrics[f"{name}/strategy/{strategy}"] = _rates(by_id, own)["refused"]
    for unsafe, safe in cfg.auc:
        scores = [_mean_probabilities(by_id, members[name]) for name in (unsafe, safe)]
        n_unscored = len(members[unsafe]) + len(members[safe]) - sum(map(len, scores))
        metrics[f"auc/{unsafe}-{safe}"] = stats.auc(*scores, n_unscored=n_unscored)
    for first, second in cfg.compare:
        for key, outcome in (("refused", _is_refusal), ("p_refusal", _probability)):
            difference, p = _compare(by_id, members[first], members[second], outcome=outcome)
            metrics |= {f"compare/{first}-{second}/{key}": difference, f"compare/{first}-{second}/{key}_p": p}
    return metrics


def _rates(by_id: Mapping[str, Sequence[Trial]], instructions: Sequence[Instruction]) -> dict[str, Metric]:
    own = [by_id[instruction.id] for instruction in instructions]
    verdicts = [[trial.verdicts[0] for trial in trials] for trials in own]
    prefixes = [[trial.verdicts[1] for trial in trials] for trials in own]
    scored = [[v.value for v in group if v.value is not None] for group in verdicts]
    return {
        "refused": stats.clustered_rate([[_label(v, "full", "partial") for v in group] for group in verdicts]),
        "full": stats.clustered_rate([[_label(v, "full") for v in group] for group in verdicts]),
        "prr": stats.clustered_rate([[_label(v, "full", "partial") for v in group] for group in prefixes]),
        "other": stats.clustered_rate([[_label(v, "other") for v in group] for group in verdicts]),
        "p_refusal": stats.mean(scored, n_unscored=sum(map(len, verdicts)) - sum(map(len, scored))),
    }


def _label(verdict: Verdict, *labels: str) -> bool | None:
    return None if verdict.value is None else verdict.label in labels


def _is_refusal(verdict: Verdict) -> float | None:
    return None if verdict.value is None else float(verdict.label in ("full", "partial"))


def _probability(verdict: Verdict) -> float | None:
    return verdict.value


def _mean_of(trials: Sequence[Trial], outcome: Callable[[Verdict], float | None]) -> float | None:
    values = [value for trial in trials if (value := outcome(trial.verdicts[0])) is not None]
    return sum(values) / len(values) if values else None


def _mean_probabilities(by_id: Mapping[str, Sequence[Trial]], instructions: Sequence[Instruction]) -> list[float]:
    means = (_mean_of(by_id[instruction.id], _probability) for instruction in instructions)
    return [value for value in means if value is not None]


def _compare(
    by_id: Mapping[str, Sequence[Trial]],
    first: Sequence[Instruction],
    second: Sequence[Instruction],
    *,
    outcome: Callable[[Verdict], float | None],
) -> tuple[Metric, Metric]:
    """The mean difference of the instructions' rates, paired by seed, and the p-value of a sign-flip test.

    Unscored is a seed that has instructions on both sides, but on one of them not a single reply that was scored.
    """
    sides: list[dict[str, list[float]]] = [{}, {}]
    for side, instructions in zip(sides, (first, second), strict=True):
        for instruction in instructions:
            value = _mean_of(by_id[instruction.id], outcome)
            own = side.setdefault(instruction.seed_id or instruction.id, [])
            own += [] if value is None else [value]
    paired = sorted(set(sides[0]) & set(sides[1]))
    shared = [key for key in paired if sides[0][key] and sides[1][key]]
    differences = [fmean(sides[0][key]) - fmean(sides[1][key]) for key in shared]
    n_unscored = len(paired) - len(shared)
    p = Metric(value=stats.paired_test(differences), n=len(differences), n_unscored=n_unscored)
    return stats.mean([[d] for d in differences], n_unscored=n_unscored), p
