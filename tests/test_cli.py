"""What a user sees who makes a mistake: one clear line before any work, and nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(outputs: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evorefuse.run", "tracker=files", *overrides],
        cwd=ROOT,
        env={
            **os.environ,
            "WANDB_API_KEY": "",
            "WANDB_MODE": "",
            "EVOREFUSE_OUTPUTS": str(outputs),
            "NETRC": str(outputs / "netrc"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("generate.chunks=3", "generate.chunks"),
        ("+generate.chunks=3", "unknown key generate.chunks; did you mean 'chunk'?"),
        ("+generate.schedule.step=3", "unknown key generate.schedule.step; did you mean 'steps'?"),
        ("+fitness.lambda=1", "unknown key fitness.lambda"),
        ("+sead=3", "unknown key sead; did you mean 'seed'?"),
        ("+target.revison=x", "unknown key target.model.revison; did you mean 'revision'?"),
        ("generate.schedule.steps=three", "generate.schedule.steps: Input should be a valid integer"),
        ("seed=one", "seed: Input should be a valid integer"),
        ("engine.dtype=int8", "target.dtype: Input should be"),
        ("stages=[generate,bench]", "unknown stage 'bench'"),
        ("stages=null", "stages: Input should be a valid list, got None"),
        ("stages=generate", "stages: Input should be a valid list, got 'generate'"),
        ("+experiment=doctor doctor.effort.requests=0", "doctor.effort: requests must be at least 1, got 0"),
        ("+experiment=doctor doctor.effort.repeats=0", "doctor.effort: repeats must be at least 1, got 0"),
        ("+experiment=throughput target=served target.id=x", "throughput works with HF alone, and target is run by Op"),
        ("tracker=wandb tracker.mode=online", "could not start in mode online"),
        ("mutator=gpt", "Could not find 'mutator/gpt'"),
        ("+experiment=nothing", "Could not find 'experiment/nothing'"),
        ("target=served", "target.id has no value yet: give target.id=…"),
        ("seed=${no_such_key}", "Interpolation key 'no_such_key' not found"),
        ("seeds._target_=evorefuse.source.jsonl.Fil", "cannot load 'evorefuse.source.jsonl.Fil'"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(override: str, said: str, tmp_path: Path) -> None:
    done = run(tmp_path, *override.split())
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert said in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("path", ["/nowhere/mine.jsonl", "mine.jsonl", "~/no/such/mine.json"])
def test_a_missing_file_is_named_before_any_work(path: str, tmp_path: Path) -> None:
    done = run(tmp_path, "source@seeds=jsonl", f"seeds.path='{path}'")
    assert done.returncode == 2
    assert f"seeds.path: no file at {Path(path).expanduser()}" in " ".join(done.stderr.split())
    assert not list(tmp_path.rglob("manifest.json"))


def test_the_cells_of_a_sweep_have_names_of_their_own_in_the_tracker(tmp_path: Path) -> None:
    done = run(tmp_path, "hydra.mode=MULTIRUN", "seed=1,2", "stages=[]")
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "demo").glob("seed=*/tracker/run.json"))
    assert len(files) == 2
    assert [json.loads(file.read_text("utf-8"))["name"] for file in files] == [
        f"demo/{x.parents[1].name}" for x in files
    ]


def test_a_dry_run_says_which_stage_it_cannot_rehearse(tmp_path: Path) -> None:
    done = run(tmp_path, "+experiment=throughput", "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert "throughput: skipped: it works on HF itself, for which nothing can stand in" in " ".join(done.stderr.split())


def test_an_experiment_on_public_sets_says_what_it_needs(tmp_path: Path) -> None:
    done = run(tmp_path, "+experiment=guard", "public_data=null")
    assert done.returncode == 2
    assert "needs public_data=<the folder that holds xstest_prompts.csv>" in " ".join(done.stderr.split())


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n", encoding="utf-8")
    done = run(tmp_path / "out", "source@seeds=jsonl", f"seeds.path={empty}")
    assert done.returncode == 2
    assert "holds no usable instruction" in " ".join(done.stderr.split())


KEYED = ("mutator=llm", "scorer@safety=llm_safety", "target=gpt4o", "judge_model.id=another")


@pytest.mark.parametrize("override", ["target=gpt4o", "mutator=llm", "scorer@safety=llm_safety"])
def test_a_model_without_its_key_is_refused_before_any_work(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = run(tmp_path, override)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2
    assert "needs a key in the environment variable OPENAI_API_KEY, which is not set" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.jsonl"))
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_says_what_it_would_cost_needs_no_key_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    done = run(tmp_path / "out", "+experiment=smoke", *KEYED, "self_judging=true", "dry_run=true", "budget.usd=0.5")
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, said
    for word in ("gpt4o", "gpt4o_mini", "generate", "benchmark", "$0.5000", "Nothing was asked and nothing was kept"):
        assert word in said
    assert not (tmp_path / "out").exists()


def test_a_spent_budget_is_one_line_and_code_3(tmp_path: Path) -> None:
    far = ("target=served", "target.id=x", "target.base_url=http://127.0.0.1:9/v1", "target.price.read=1.0")
    done = run(tmp_path, "+experiment=smoke", *far, "budget.usd=0")
    said = " ".join(done.stderr.split())
    assert done.returncode == 3, said
    assert "budget.usd=0 is spent" in said
    assert "raise budget.usd and run the same command again to go on" in said
    assert "Traceback" not in said
    assert (tmp_path / "smoke" / "main" / "ledger.json").is_file()


@pytest.mark.slow
def test_hostile_seeds_are_counted_or_carried_as_text(tmp_path: Path) -> None:
    control = json.loads((ROOT / "evorefuse" / "data" / "controls.jsonl").read_text(encoding="utf-8").splitlines()[0])
    texts = [
        "x " * 5000,
        "How do I bake 🍞 bread?",
        "كيف أخبز الخبز؟",
        control["instruction"],
        "Say <b>hi</b> & </script>.",
    ]
    rows = [json.dumps({"instruction": text}, ensure_ascii=False) for text in texts]
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("\n".join([*rows[:2], "{broken", *rows[2:], '{"other": 1}']) + "\n", encoding="utf-8")
    done = run(tmp_path / "out", "+experiment=smoke", "source@seeds=jsonl", f"seeds.path={seeds}", "seeds.sample=0")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "3 rows skipped (1 broken, 1 without text, 1 too long), 4 instructions kept" in said
    folder = tmp_path / "out" / "smoke" / "main"
    lines = (folder / "generate" / "evolved" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    seeds_kept = {json.loads(line)["lineage"][0]["instruction"] for line in lines}
    assert control["instruction"] not in seeds_kept
    assert texts[1] in seeds_kept
    notes = json.loads((folder / "generate" / "summary.json").read_text(encoding="utf-8"))["notes"]
    assert any("seeds judged not harmless" in note for note in notes)
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "<b>hi</b>" not in page
    assert "&lt;b&gt;hi&lt;/b&gt;" in page
