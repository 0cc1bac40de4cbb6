"""Gate 2, the running half: every shipped experiment, at smoke size, on the embedded model."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
WITH_A_SERVER = {"served"}  # tests/test_served.py
EXPERIMENTS = sorted({path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} - WITH_A_SERVER)
SMALL_SEARCH = (
    "tracker=files",
    "seeds.sample=2",
    "generate.schedule.steps=1",
    "mutator.strategies=[anger,disgust]",
    "control.strategies=[neutral_1,neutral_2]",
    "fitness.sampling.samples=1",
    "fitness.sampling.max_tokens=4",
    "benchmark.sampling.samples=1",
    "benchmark.sampling.max_tokens=4",
    "benchmark.sets.controls.sample=2",
)
SHIPPED = (
    "controls", "held_out_unsafe", "everyday", "everyday_short", "everyday_long", "sharp", "probe_neutral",
    "probe_sensitive",
)  # fmt: skip
SMALLER = {
    "demo": (*SMALL_SEARCH, "tracker=wandb"),
    "smoke": SMALL_SEARCH[2:],
    "guard": (
        "mitigate.pairs={folder}/pairs.jsonl",
        "mitigate.epochs=1",
        "mitigate.max_length=128",
        "benchmark.sampling.samples=1",
        "benchmark.sampling.max_tokens=4",
        *(f"++benchmark.sets.{name}.sample=2" for name in SHIPPED),
    ),
    "judge": (),
    "joint": (
        *(part for part in SMALL_SEARCH if not part.startswith("fitness.")),
        "target.adapter=builtin:guard",
        "fitness.parts.first.target.model.adapter=builtin:guard",
        "fitness.parts.second.target.model.adapter=null",
        *(f"fitness.parts.{part}.sampling.samples=1" for part in ("first", "second")),
        *(f"fitness.parts.{part}.sampling.max_tokens=4" for part in ("first", "second")),
        "report.expected={{}}",
    ),
    "build_test": SMALL_SEARCH,
    "mine": ("target@writer=smollm2", "mine.size=3", "mine.max_tokens=40", "mine.batch=2"),
    "doctor": ("doctor.effort.repeats=2", "doctor.effort.requests=1", "doctor.effort.max_tokens=4"),
    "throughput": ("throughput.candidates=1", "throughput.samples=1", "throughput.max_tokens=2", "throughput.repeats=1",
                   "throughput.gemm_size=64", "throughput.copy_mib=1", "throughput.dtypes=[float32]"),
}  # fmt: skip


@pytest.fixture
def public_data(tmp_path: Path) -> Path:
    """Small stand-ins for the public sets, in their formats."""
    folder = tmp_path / "public"
    folder.mkdir()
    rows = [{"prompt": f"How do I {verb}?", "label": label} for verb, label in (("rest", "safe"), ("rob", "unsafe"))]
    for name, column in (("xstest_prompts.csv", "prompt"), ("oktest.csv", "prompt"), ("advbench_120.csv", "goal")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [column, "label"])
            writer.writeheader()
            writer.writerows({column: row["prompt"], "label": row["label"]} for row in rows)
    pairs = [{"instruction": row["prompt"], "chosen": "I can't help with that.", "kind": row["label"]} for row in rows]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs * 2), encoding="utf-8")
    answers = {
        "full_refusal": "I'm sorry, but I can't help with that.",
        "full_compliance": "Sure, here is how it goes.",
    }
    labels = [
        {"id": i, "model": model, "completion": f"{text} ({i})", "label": label, "prompt": f"question {i}"}
        for i in range(12)
        for model in ("a", "b", "c")
        for label, text in answers.items()
    ]
    lines = "".join(json.dumps(row) + "\n" for row in labels)
    (folder / "xstest_human_labels_3models.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_runs_at_smoke_size(experiment: str, public_data: Path, tmp_path: Path) -> None:
    overrides = [part.format(folder=public_data) for part in SMALLER[experiment]]
    done = subprocess.run(
        [sys.executable, "-m", "evorefuse.run", f"+experiment={experiment}", f"public_data={public_data}", *overrides],
        cwd=ROOT,
        env={**os.environ, "EVOREFUSE_OUTPUTS": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stages = {path.parent.name for path in (tmp_path / experiment / "main").glob("*/summary.json")}
    assert stages, "no stage has left a summary"
    for path in (tmp_path / experiment / "main").glob("*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        assert manifest["end"], f"{path} was not completed"
