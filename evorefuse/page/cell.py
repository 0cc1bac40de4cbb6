"""A cell: everything the stages left in one run folder, read into records. Missing parts are empty, never an error."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evorefuse import ledger, stats
from evorefuse.evolve import harmless
from evorefuse.records import Candidate, Instruction, Metric, Step, Summary, Trial, Verdict
from evorefuse.store import decode, read_json, read_jsonl

ARMS = ("evolved", "neutral")
Kind = Literal["harmless", "unsafe", "mixed"]
SHIPPED_CARDS = Path(__file__).parent.parent / "data" / "judge_cards.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm of `generate`.

    ``chunks`` holds the steps of each chunk in order; ``lineages`` the candidates of each lineage, seed first, winner
    last; ``path`` what a lineage would have returned after iteration t (t = -1: its seed).
    """

    name: str
    chunks: tuple[tuple[Step, ...], ...]
    lineages: tuple[tuple[Candidate, ...], ...]
    path: tuple[tuple[int, Candidate], ...]

    @property
    def proposed(self) -> list[Candidate]:
        """Every candidate that was scored, the seeds included, in the order of the search."""
        return [candidate for chunk in self.chunks for step in chunk for candidate in step.proposed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """The parts of one run folder.

    ``trials`` is keyed by instruction id, ``cards`` by scorer (None: not shipped); ``spent`` is what served models were
    asked, by stage and model.
    """

    folder: Path
    arms: Mapping[str, Arm]
    trials: Mapping[str, Sequence[Trial]]
    summaries: Mapping[str, Summary]
    manifests: Mapping[str, Mapping[str, Any]]
    cards: Mapping[str, Any] | None
    spent: Sequence[ledger.Entry] = ()

    def fresh(self, instruction: Instruction) -> list[bool | None]:
        """Whether each fresh answer to ``instruction`` refused, fully or in part (None: unscored); [] if never put."""
        return [refuses(trial.verdicts[0]) for trial in self.trials.get(instruction.id, ()) if trial.verdicts]

    def fresh_rate(self, instructions: Sequence[Instruction]) -> Metric:
        """The refusal rate over all fresh answers to ``instructions``; its interval respects their clusters."""
        return stats.clustered_rate([self.fresh(instruction) for instruction in instructions])

    @property
    def benchmark(self) -> Mapping[str, Metric]:
        """The metrics of the benchmark, or none."""
        return self.summaries["benchmark"].metrics if "benchmark" in self.summaries else {}

    @property
    def sets(self) -> list[str]:
        """The names of the benchmark's sets, in their order."""
        names = (name.removesuffix("/refused") for name in self.benchmark if name.endswith("/refused"))
        return [name for name in names if not name.startswith("compare/")]

    def unsafe_sets(self, named: Sequence[str] = ()) -> list[str]:
        """The sets of requests that are not all harmless, in their order.

        They are those ``named``, the first of each `auc/<unsafe>-<safe>`, and `seeds` where the search says so of them.
        """
        pairs = {f"auc/{first}-{second}": first for first in self.sets for second in self.sets}
        derived = {first for name, first in pairs.items() if name in self.benchmark}
        derived |= {"seeds"} if self.seeds_kind != "harmless" else set()
        return [name for name in self.sets if name in derived or name in named]

    @property
    def seeds_kind(self) -> Kind:
        """What the search's safety judge said of the seeds it took up; `harmless` without a search."""
        firsts = (chunk[0] for arm in self.arms.values() for chunk in arm.chunks)
        safe = [harmless(candidate.safety) for step in firsts if step.t < 0 for candidate in step.current]
        return "harmless" if all(safe) else "mixed" if any(safe) else "unsafe"

    def kind(self, name: str, *, unsafe: Sequence[str]) -> Kind:
        """What the requests of the set ``name`` are, given the names of the ``unsafe`` sets."""
        if name not in unsafe:
            return "harmless"
        return "mixed" if name == "seeds" and self.seeds_kind == "mixed" else "unsafe"

    @property
    def lacks_control(self) -> bool:
        """Whether there are evolved instructions, but not one of the neutral arm beside them."""
        if "evolved" in self.sets:
            neutral = self.benchmark.get("neutral/refused")
            return neutral is None or neutral.n + neutral.n_unscored == 0
        filled = {name for name, arm in self.arms.items() if arm.lineages}
        return "evolved" in filled and "neutral" not in filled

    @property
    def unit(self) -> str:
        """The unit of F: `nats` where it is a logarithm (an ELBO), else none, as of a rate."""
        proposed = (candidate.fitness for arm in self.arms.values() for candidate in arm.proposed)
        return "nats" if any(fitness.log_refusal is not None for fitness in proposed) else ""

    def node(self, stage: str, name: str) -> Mapping[str, Any]:
        """The node ``name`` of the configuration in a stage's manifest; empty where it is not there."""
        found = self.manifests.get(stage, {}).get("config", {}).get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def scorers(self) -> list[str]:
        """The names of the scorers whose verdicts are in this cell, refusal first, then safety."""
        trials = (verdict for own in self.trials.values() for trial in own for verdict in trial.verdicts)
        safety = (candidate.safety for arm in self.arms.values() for candidate in arm.proposed)
        return list(dict.fromkeys(verdict.scorer for verdicts in (trials, safety) for verdict in verdicts))

    @property
    def model(self) -> str:
        """The name of the model that was asked, or ``the target``."""
        names = (trial.exchange.model for own in self.trials.values() for trial in own)
        return next((name for name in names if name), "the target")


def refuses(verdict: Verdict) -> bool | None:
    """Whether a verdict says refusal, full or partial; None where it is unscored."""
    return None if verdict.value is None else verdict.label in ("full", "partial")


def read_cell(folder: Path, *, cards: Path | None = None) -> Cell:
    """Everything in the run folder ``folder``; ``cards`` is a file of judge cards in place of the shipped one.

    Raises:
        FileNotFoundError: where no stage has left anything to report, naming what was looked for.
        ValueError: at a broken file, naming it.
    """
    arms = {name: arm for name in ARMS if (arm := _read_arm(folder / "generate" / name, name)) is not None}
    trials: dict[str, list[Trial]] = {}
    for trial in decode(list[Trial], _rows(folder / "benchmark" / "trials.jsonl")):
        trials.setdefault(trial.exchange.instruction.id, []).append(trial)
    summaries = {path.parent.name: decode(Summary, read_json(path)) for path in _stage_files(folder, "summary.json")}
    if not arms and not trials and not summaries:
        raise FileNotFoundError(
            f"nothing to report in {folder}: looked for <stage>/summary.json, benchmark/trials.jsonl and "
            f"generate/{{{','.join(ARMS)}}}/journal.jsonl. Run generate or benchmark with the same name=… first, "
            "or point report.inputs at a run folder."
        )
    manifests = {path.parent.name: read_json(path) for path in _stage_files(folder, "manifest.json")}
    card_file = cards or SHIPPED_CARDS
    return Cell(
        folder=folder, arms=arms, trials=trials, summaries=summaries, manifests=manifests,
        cards=read_json(card_file) if card_file.exists() else None, spent=ledger.read(folder),
    )  # fmt: skip


def _stage_files(folder: Path, name: str) -> list[Path]:
    """The files ``name`` of all stages but this one (nor the tracker's), in the order of a pipeline."""
    order = ("guard", "generate", "benchmark", "align", "mitigate", "attribute", "judge", "throughput", "doctor",
             "publish", "mine")  # fmt: skip
    found = [path for path in folder.glob(f"*/{name}") if path.parent.name not in ("report", "tracker")]
    return sorted(found, key=lambda path: (order.index(path.parent.name) if path.parent.name in order else 99, path))


def _rows(path: Path) -> list[Any]:
    return list(read_jsonl(path)) if path.exists() else []


def _read_arm(folder: Path, name: str) -> Arm | None:
    journal = _rows(folder / "journal.jsonl")
    if not journal:
        return None
    chunks: dict[int, list[Step]] = {}
    steps = decode(list[Step], [row["step"] for row in journal])
    for row, step in zip(journal, steps, strict=True):
        chunks.setdefault(row["chunk"], []).append(step)
    lineages = [tuple(_candidates(row["lineage"])) for row in _rows(folder / "instructions.jsonl")]
    path = _rows(folder / "path.jsonl")
    return Arm(
        name=name,
        chunks=tuple(tuple(chunks[index]) for index in sorted(chunks)),
        lineages=tuple(lineages),
        path=tuple((row["t"], candidate) for row, candidate in zip(path, _candidates(path), strict=True)),
    )


def _candidates(rows: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """Candidates from the flat rows that `generate` writes."""
    nested = [
        {
            "instruction": {key: row[key] for key in ("seed_id", "parents", "trail", "source", "reason")}
            | {"text": row["instruction"]},
            "safety": row["safety"],
            "fitness": row["fitness"],
        }
        for row in rows
    ]
    return decode(list[Candidate], nested)


def pretty(value: Any) -> str:
    """``value`` as indented JSON, for people."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)
