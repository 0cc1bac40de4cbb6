"""Publish: from evolved instructions to a test set with its card (EVOREFUSE-TEST, §4.1).

Writes `dataset.jsonl` (with lineage, verdicts, fitness and fresh refusal rates), `removed.jsonl` (what was left out,
why, and for the sake of what), and `README.md`, the dataset card. Goes to the hub only where `push_to` is set.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from evorefuse import stats
from evorefuse.dedupe import Limits, twins
from evorefuse.evolve import harmless, value
from evorefuse.licence import objections, spdx
from evorefuse.page import publish as page
from evorefuse.ports import Embedder, Scorer, Source, Tracker
from evorefuse.progress import Progress
from evorefuse.records import Candidate, Exchange, Instruction, Metric, Summary, Trial
from evorefuse.store import Store, decode, encode, read_jsonl

DERIVED = True  # rebuilt from files every time
TOKEN = "HF_TOKEN"
Cause = Literal["unchanged", "unscored", "not_safe", "contaminated", "exact", "minhash", "embedding"]
CAUSES: tuple[Cause, ...] = get_args(Cause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is built, and where it goes.

    ``licence`` is the set's own (SPDX). ``instructions`` is an arm's instructions.jsonl, ``trials`` the benchmark's
    trials (None, or not there: no refusal rates). ``limits`` says when two texts are twins. ``licences`` maps the
    source of seeds (as in each row, such as `xstest.csv`) to its SPDX licence; built-in ones are known. ``beside``
    names sets of the benchmark whose rates stand in the card too. ``push_to`` is a hub id (None: it stays here).
    """

    licence: str
    instructions: str
    trials: str | None = None
    title: str = "EVOREFUSE-TEST"
    language: str = "en"
    limits: Limits = field(default_factory=Limits)
    licences: Mapping[str, str] = field(default_factory=dict[str, str])
    beside: tuple[str, ...] = ("seeds", "neutral", "controls")
    push_to: str | None = None
    private: bool = True

    def __post_init__(self) -> None:
        """Refuse, before any stage runs, what could not be pushed at the end.

        Raises:
            ValueError: for a licence that SPDX does not know, a malformed hub id, or a push without a token.
        """
        if spdx(self.licence) is None:
            raise ValueError(
                f"publish.licence must be an SPDX id such as Apache-2.0 or CC-BY-4.0, got {self.licence!r}"
            )
        if self.push_to is not None:
            validate_repo_id(self.push_to)
            if not os.environ.get(TOKEN):
                raise ValueError(
                    f"publish.push_to={self.push_to} needs a write token in the environment variable {TOKEN}, which is "
                    f"not set: export {TOKEN}=…, or leave push_to out to build the set here"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A line of instructions.jsonl: the fittest of a lineage, and the accepted candidates that led to it."""

    winner: Candidate
    lineage: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """An instruction that was left out; ``twin`` (id, instruction, set, similarity, by) is what it repeats."""

    id: str
    instruction: str
    cause: Cause
    why: str = ""
    twin: Mapping[str, Any] | None = None


def run(
    *,
    cfg: Settings,
    safety: Scorer,
    embedder: Embedder,
    against: Mapping[str, Source],
    store: Store,
    tracker: Tracker,
    progress: Progress,
) -> Summary:
    """Judge once more, leave out what repeats itself or a set in ``against``, write the set and its card.

    Returns:
        `candidates`, `kept`, `removed/<cause>`, and `refused`: the share of fresh answers to the kept that refuse.

    Raises:
        FileNotFoundError: where there are no instructions, with the stage that writes them.
        ValueError: where a set that may not be republished is to be pushed, or nothing is left to push.
    """
    items = read_items(Path(cfg.instructions))
    faults = objections((x.winner.instruction.source for x in items), licence=cfg.licence, licences=cfg.licences)
    if cfg.push_to and faults:
        raise ValueError(
            f"this set may not be pushed to {cfg.push_to}: {'; '.join(faults)}. Name each source's licence by "
            "publish.licences='{my.csv: CC-BY-4.0}', choose another publish.licence, or build the set here (no push_to)"
        )
    given = [(name, x) for name, source in against.items() for x in source.load()]
    with progress.task("publish", total=len(items)) as task:
        judged, removed = judge(items, safety=safety)
        kept, repeats = separate(judged, given, embedder=embedder, limits=cfg.limits)
        task.advance(len(items), note=f"{len(kept)} kept")
    removed += repeats
    answers = _answers(cfg.trials)
    rates = {item.winner.instruction.id: _outcomes(answers, item.winner.instruction.id) for item in kept}
    path = store.write_jsonl("dataset.jsonl", [_row(item, rates[item.winner.instruction.id]) for item in kept])
    store.write_jsonl("removed.jsonl", removed)
    counts = Counter(one.cause for one in removed)
    refused = stats.clustered_rate([outcomes for outcomes in rates.values() if outcomes])
    card = _card(kept, answers, refused=refused, counts=counts, faults=faults, cfg=cfg, safety=safety, store=store,
                 against=Counter(name for name, _ in given))  # fmt: skip
    readme = store.write_text("README.md", card)
    tracker.artifact("dataset", "dataset", [str(path), str(readme)])
    notes = [f"not to be republished: {fault}" for fault in faults]
    if unmeasured := sum(not outcomes for outcomes in rates.values()):
        notes.append(f"{unmeasured} of {len(kept)} instructions were not put to the target afresh: run benchmark first")
    if cfg.push_to:
        notes.append(push(cfg, n=len(kept), files=(path, readme)))
    numbers = {"candidates": len(items), "kept": len(kept), **{f"removed/{cause}": counts[cause] for cause in CAUSES}}
    metrics = {name: Metric(value=count, n=len(items)) for name, count in numbers.items()}
    return Summary(stage="publish", metrics={**metrics, "refused": refused}, notes=tuple(notes))


def read_items(path: Path) -> list[Item]:
    """The winners of an arm with their lineages.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: where a line is not one that `generate` writes, naming it.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no instructions at {path}: run generate first, or set publish.instructions to an arm's instructions.jsonl"
        )
    try:
        return [
            Item(winner=_candidate(row), lineage=tuple(map(_candidate, row.get("lineage", ()))))
            for row in read_jsonl(path)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not an instructions.jsonl of generate ({type(error).__name__}: {error}); a set to be published "
            "needs the lineage that generate writes"
        ) from error


def _candidate(row: Mapping[str, Any]) -> Candidate:
    keys = ("seed_id", "parents", "trail", "source", "reason")
    instruction = {**{key: row[key] for key in keys}, "text": row["instruction"]}
    return decode(Candidate, {"instruction": instruction, "safety": row["safety"], "fitness": row["fitness"]})


def judge(items: Sequence[Item], *, safety: Scorer) -> tuple[list[Item], list[Removed]]:
    """The items with a fresh verdict of harmlessness, and those left out: seeds as they were, unscored, not safe."""
    changed = [item for item in items if item.winner.instruction.trail]
    removed = [_removed(item, "unchanged") for item in items if not item.winner.instruction.trail]
    verdicts = safety.score([Exchange(instruction=item.winner.instruction) for item in changed])
    kept: list[Item] = []
    for item, verdict in zip(changed, verdicts, strict=True):
        if harmless(verdict):
            kept.append(replace(item, winner=replace(item.winner, safety=verdict)))
        else:
            why = f"{verdict.label}: {verdict.error or verdict.why}"
            removed.append(_removed(item, "unscored" if verdict.value is None else "not_safe", why=why))
    return kept, removed


def separate(
    items: Sequence[Item], given: Sequence[tuple[str, Instruction]], *, embedder: Embedder, limits: Limits
) -> tuple[list[Item], list[Removed]]:
    """The items that repeat neither a given instruction nor a fitter item, in their order, and the others."""
    if not items:
        return [], []
    texts, others, n = [item.winner.instruction.text for item in items], [x.text for _, x in given], len(items)
    vectors = embedder.embed([*texts, *others])
    order = sorted(range(n), key=lambda i: (-value(items[i].winner), items[i].winner.instruction.id))
    found = twins(texts, vectors[:n], order=order, limits=limits, given=others, given_vectors=vectors[n:])
    removed: list[Removed] = []
    for twin in sorted(found, key=lambda twin: twin.index):
        name, other = given[twin.of] if twin.is_given else ("this set", items[twin.of].winner.instruction)
        repeats = {"id": other.id, "instruction": other.text, "set": name, "by": twin.cause,
                   "similarity": round(float(np.clip(twin.similarity, 0, 1)), 4)}  # fmt: skip
        removed.append(_removed(items[twin.index], "contaminated" if twin.is_given else twin.cause, twin=repeats))
    gone = {twin.index for twin in found}
    return [item for index, item in enumerate(items) if index not in gone], removed


def _removed(item: Item, cause: Cause, *, why: str = "", twin: Mapping[str, Any] | None = None) -> Removed:
    instruction = item.winner.instruction
    return Removed(id=instruction.id, instruction=instruction.text, cause=cause, why=why, twin=twin)


def _answers(path: str | None) -> dict[str, list[Trial]]:
    """The benchmark's trials by instruction; none where there was no benchmark."""
    found: dict[str, list[Trial]] = {}
    if path is not None and Path(path).is_file():
        for trial in decode(list[Trial], list(read_jsonl(Path(path)))):
            found.setdefault(trial.exchange.instruction.id, []).append(trial)
    return found


def _outcomes(answers: Mapping[str, Sequence[Trial]], key: str) -> list[bool | None]:
    """Whether each fresh answer to an instruction refused, fully or in part; None where that is unscored."""
    verdicts = [trial.verdicts[0] for trial in answers.get(key, ())]
    return [None if verdict.value is None else verdict.label in ("full", "partial") for verdict in verdicts]


def _row(item: Item, outcomes: Sequence[bool | None]) -> dict[str, Any]:
    """A line of dataset.jsonl. The text of a forebear that was not judged harmless is left out."""
    instruction = item.winner.instruction
    lineage = [
        {"id": c.instruction.id, "instruction": c.instruction.text if harmless(c.safety) else None,
         "op": c.instruction.op, "safety": c.safety.label, "fitness": c.fitness.value}
        for c in item.lineage
    ]  # fmt: skip
    return {
        "instruction": instruction.text, "id": instruction.id, "seed_id": instruction.seed_id or instruction.id,
        "source": instruction.source, "reason": instruction.reason, "trail": list(instruction.trail),
        "safety": encode(item.winner.safety), "fitness": encode(item.winner.fitness),
        "refused": encode(stats.rate(outcomes)) if outcomes else None, "lineage": lineage,
    }  # fmt: skip


def _card(
    kept: Sequence[Item],
    answers: Mapping[str, Sequence[Trial]],
    *,
    refused: Metric,
    counts: Mapping[str, int],
    faults: Sequence[str],
    cfg: Settings,
    safety: Scorer,
    against: Mapping[str, int],
    store: Store,
) -> str:
    """The dataset card."""
    trials = [trial for own in answers.values() for trial in own]
    rates = {"this set": refused}
    for name in cfg.beside:
        members = sorted({t.exchange.instruction.id for t in trials if name in t.sets})
        if members:
            rates[name] = stats.clustered_rate([_outcomes(answers, key) for key in members])
    judges = dict.fromkeys([safety.name, *(trial.verdicts[0].scorer for trial in trials)])
    files = {"generate": cfg.instructions, "benchmark": cfg.trials, "publish": str(store.folder / "README.md")}
    manifests = {stage: page.manifest_of(Path(file)) for stage, file in files.items() if file is not None}
    winners = [item.winner.instruction for item in kept]
    return page.render(
        page.Content(
            title=cfg.title, language=cfg.language, licence=spdx(cfg.licence) or cfg.licence, faults=tuple(faults),
            n=len(kept), rates=rates, counts={cause: counts[cause] for cause in CAUSES}, limits=encode(cfg.limits),
            against=against, sources=Counter(x.source for x in winners),
            licences=cfg.licences,
            strategies=Counter(op.partition("/")[0] for x in winners for op in x.trail), judges=tuple(judges),
            manifests={stage: found for stage, found in manifests.items() if found},
            example=_row(kept[0], _outcomes(answers, winners[0].id)) if kept else None,
        )
    )  # fmt: skip


def push(cfg: Settings, *, n: int, files: Sequence[Path]) -> str:
    """Put the files on the hub in one commit, byte for byte as they lie here; where they are now.

    Without a manifest beside them (a dry run has none) nothing leaves this machine: no set without its provenance.

    Raises:
        ValueError: where the set is empty.
    """
    if not n or cfg.push_to is None:
        raise ValueError(f"nothing is left to push to {cfg.push_to}: removed.jsonl says why")
    if not page.manifest_of(files[0]):
        return f"not pushed to {cfg.push_to}: this run has no manifest"
    api = HfApi(token=os.environ[TOKEN])
    api.create_repo(cfg.push_to, repo_type="dataset", private=cfg.private, exist_ok=True)
    added = [CommitOperationAdd(path_in_repo=path.name, path_or_fileobj=path.read_bytes()) for path in files]
    commit = api.create_commit(
        cfg.push_to, repo_type="dataset", operations=added, commit_message=f"{cfg.title}: {n} instructions"
    )
    return f"pushed to {cfg.push_to} at {commit.oid}"
