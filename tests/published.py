"""A run folder to publish from, and the stage on it."""

import json
from pathlib import Path

from fakes import MarkJudge, Notebook
from points import Words

from evorefuse.progress import Progress
from evorefuse.records import (
    Candidate,
    Fitness,
    Instruction,
    Summary,
    Verdict,
    content_id,
)
from evorefuse.stages import publish
from evorefuse.store import Store, encode, read_jsonl

SAFE = Verdict(scorer="marks", label="safe", value=0.9)
CANARY = "hf_canary_7f3a9b"


def candidate(
    text: str, *, f: float | None = 0.0, trail=("anger/x",), source="builtin:seeds", safety=SAFE
) -> Candidate:
    fitness = Fitness(value=f, log_refusal=f, n=1) if f is not None else Fitness(value=None, error="no reply")
    made = Instruction(text=text, seed_id=content_id(f"seed of {text}"), trail=trail, source=source, reason="harmless")
    return Candidate(instruction=made, safety=safety, fitness=fitness)


def flat(one: Candidate) -> dict:
    """A line as `generate` writes it."""
    x = one.instruction
    return {
        "id": x.id, "instruction": x.text, "seed_id": x.seed_id or x.id, "parents": list(x.parents),
        "trail": list(x.trail), "source": x.source, "reason": x.reason, "safety": encode(one.safety),
        "fitness": encode(one.fitness),
    }  # fmt: skip


def write(folder: Path, winners: list[Candidate], *, lineage=()) -> str:
    path = folder / "generate" / "evolved" / "instructions.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**flat(one), "lineage": [flat(each) for each in (*lineage, one)]} for one in winners]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Trusting:
    """Takes everything for harmless."""

    name = "trusting"

    def score(self, exchanges):
        return [SAFE for _ in exchanges]


def work(
    folder: Path, winners, *, against=None, embedder=None, lineage=(), safety=None, has_manifest=False, **changes
) -> Summary:
    cfg = publish.Settings(
        **{"licence": "Apache-2.0", "instructions": write(folder, winners, lineage=lineage), **changes}
    )
    store = Store(folder / "publish")
    if has_manifest:
        store.claim({"publish": {}}, facts={"commit": "c0ffee"}, derived=True)
    try:
        return publish.run(
            cfg=cfg, safety=safety or MarkJudge(), embedder=embedder or Words(), against=against or {}, store=store,
            tracker=Notebook(), progress=Progress(quiet=True),
        )  # fmt: skip
    finally:
        store.close()


def rows(folder: Path, name: str) -> list[dict]:
    return list(read_jsonl(folder / "publish" / name))


def texts(folder: Path) -> list[str]:
    return [row["instruction"] for row in rows(folder, "dataset.jsonl")]


def card(folder: Path) -> str:
    return (folder / "publish" / "README.md").read_text("utf-8")
