"""A real server end to end: `transformers serve` with the embedded model, as experiments/served runs it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from evorefuse.lm.embedded import embedded_folder

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
START = 300  # seconds that the server may take to load its model
SMALL = (
    "seeds.sample=2",
    "mutator.strategies=[anger]",
    "mutator.max_tokens=24",
    "control.strategies=[neutral_1]",
    "generate.schedule.elite=0",
    "fitness.sampling.samples=1",
    "fitness.sampling.max_tokens=4",
    "benchmark.refusal.max_tokens=16",
    "benchmark.sampling.samples=1",
    "benchmark.sampling.max_tokens=4",
    "benchmark.sets.controls.sample=2",
    "benchmark.sets.candidates.sample=1",
    "doctor.effort.repeats=2",
    "doctor.effort.requests=2",
    "doctor.effort.max_tokens=4",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that answers with the embedded model under the name smollm2."""
    if not all(find_spec(name) for name in ("fastapi", "uvicorn")):
        pytest.skip("`transformers serve` needs fastapi and uvicorn: pip install -e .[serving]")
    folder = tmp_path_factory.mktemp("server")
    (folder / "smollm2").symlink_to(embedded_folder())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "smollm2", "--device", "cpu"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        end = time.monotonic() + START
        while not _is_up(port):
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip(f"the server did not start: {(folder / 'log').read_text()[-500:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def run(server: str, outputs: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evorefuse.run", *overrides],
        cwd=ROOT,
        env={**os.environ, "EVOREFUSE_SERVER": server, "EVOREFUSE_OUTPUTS": str(outputs), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def found(folder: Path) -> dict[str, Any]:
    checks = json.loads((folder / "doctor" / "report.json").read_text("utf-8"))["checks"]
    return {f"{check['model']}/{check['name']}": check["state"] for check in checks}


def test_the_doctor_says_what_this_server_ignores_and_stops_a_run_that_rests_on_it(server: str, tmp_path: Path) -> None:
    small = [override for override in SMALL if override.startswith("doctor")]
    done = run(
        server, tmp_path, "+experiment=doctor", "stages=[doctor,benchmark]", "target=served", "target.id=smollm2",
        f"target.base_url={server}", *small,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    for cure in ("target.logprobs=false", "target.top_k=false", "target.extra"):
        assert cure in done.stderr
    states = found(tmp_path / "doctor" / "main")
    ignored = {name for name, state in states.items() if state == "ignored"}
    assert ignored == {f"served/{name}" for name in ("logprobs", "n", "json", "sampling", "top_k")}
    assert not (tmp_path / "doctor" / "main" / "benchmark").exists(), "a later stage has started"


@pytest.mark.parametrize(
    "variant",
    [
        ("name=all_parts",),
        ("name=local_target", "target=smollm2_guard", "engine.threads=1"),
        ("name=own_judge", "scorer@safety=llm_safety", "safety.max_tokens=24"),
    ],
    ids=lambda variant: variant[0].partition("=")[2],
)
def test_one_small_model_plays_all_the_parts(server: str, tmp_path: Path, variant: tuple[str, ...]) -> None:
    done = run(server, tmp_path, "+experiment=served", *SMALL, *variant)
    name = variant[0].partition("=")[2]
    folder = tmp_path / name / "main"
    states = found(folder)
    assert states["smollm2_served/seed"] == states["smollm2_served/reachable"] == "ok"
    assert states["smollm2_served/logprobs"] == states["smollm2_served/json"] == "ignored"
    if name == "own_judge" and done.returncode == 2:
        assert "judged harmless" in done.stderr, "a judge of this size may accept no seed: then that is said"
        return
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "local_target":
        assert states["smollm2_guard/batch"] == "ok"
    ended = {path.parent.name: json.loads(path.read_text("utf-8"))["end"] for path in folder.glob("*/manifest.json")}
    assert ended.keys() == {"doctor", "generate", "benchmark", "report"}
    assert all(ended.values())
    assert (folder / "report" / "report.html").stat().st_size > 10_000
