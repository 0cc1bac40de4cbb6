"""Gate 4: the whole pipeline on the embedded model, killed in the middle and rerun, ends in the same bytes."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("EVOREFUSE_KILLS", "2"))
FILES = ("generate/evolved/instructions.jsonl", "generate/neutral/instructions.jsonl", "benchmark/trials.jsonl")


def start(outputs: Path, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "evorefuse.run", "+experiment=smoke", "stages=[generate,benchmark]", *overrides],
        cwd=ROOT,
        env={**os.environ, "EVOREFUSE_OUTPUTS": str(outputs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def results(outputs: Path) -> dict[str, bytes]:
    return {name: (outputs / "smoke" / "main" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """The files of a run that nobody disturbed, and the seconds it took."""
    outputs = tmp_path_factory.mktemp("whole")
    begun = time.monotonic()
    finish(start(outputs))
    return results(outputs), time.monotonic() - begun


@pytest.mark.parametrize("kill", range(KILLS))
def test_a_killed_run_ends_in_the_same_bytes(kill: int, whole: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    expected, seconds = whole
    process = start(tmp_path)
    delay = random.Random(kill).uniform(0.3, 0.95) * seconds
    time.sleep(delay)
    process.kill()
    process.communicate()
    there = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jsonl"))
    finish(start(tmp_path))
    print(f"killed after {delay:.1f} of {seconds:.1f} s with {there}")
    assert results(tmp_path) == expected


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    finish(start(tmp_path, "stages=[generate]", "generate.schedule.steps=1"))
    process = start(tmp_path, "stages=[generate]", "generate.schedule.steps=2", "fitness.confidence_weight=0.1")
    output, _ = process.communicate()
    assert process.returncode == 2
    said = " ".join(output.split())
    assert "generate.schedule.steps (there 1, now 2)" in said
    assert "fitness.confidence_weight (there 0.03, now 0.1)" in said
