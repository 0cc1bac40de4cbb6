"""Runs on the scripted server: stopped, resumed, side by side; nothing paid twice, and always the same files."""

import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from server import Server
from spending import SMALL, composed, models, served

from evorefuse.compose import ConfigError
from evorefuse.ledger import BudgetError
from evorefuse.progress import Progress
from evorefuse.run import execute
from evorefuse.store import ConflictError

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("EVOREFUSE_KILLS", "2"))
FILES = (
    "generate/evolved/instructions.jsonl", "generate/evolved/candidates.jsonl", "generate/neutral/instructions.jsonl",
    "benchmark/trials.jsonl",
)  # fmt: skip


def go(folder: Path, *overrides: str) -> None:
    execute(composed(folder, *overrides), Progress(quiet=True))


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "run" / name).read_bytes() for name in FILES}


def entries(folder: Path) -> list[dict[str, object]]:
    return json.loads((folder / "run" / "ledger.json").read_text())["entries"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a run that nobody disturbed, and what it asked."""
    folder = tmp_path_factory.mktemp("whole")
    with served() as (server, overrides):
        go(folder, *overrides)
        assert max(server.answered.values()) == 1
        return results(folder), sum(server.answered.values()), entries(folder)


def test_a_budget_that_ends_again_and_again_ends_in_the_same_files(whole, tmp_path):
    expected, paid, once = whole
    usd = sum(float(entry["usd"]) for entry in once)
    with served() as (server, overrides):
        for limit in (0.0, 0.3 * usd, 0.5 * usd, 0.7 * usd):
            with pytest.raises(BudgetError, match=r"budget\.usd=.* is spent"):
                go(tmp_path, *overrides, f"budget.usd={limit}")
            assert sum(float(entry["usd"]) for entry in entries(tmp_path)) <= limit
        go(tmp_path, *overrides, "budget.usd=1.0")
        assert max(server.answered.values()) == 1
        assert sum(server.answered.values()) == paid
    assert results(tmp_path) == expected
    for key in ("requests", "read", "written"):
        assert sum(int(entry[key]) for entry in entries(tmp_path)) == sum(int(entry[key]) for entry in once)


def test_tokens_bound_a_run_whose_models_have_no_price(tmp_path):
    with Server() as server:
        overrides = (*SMALL, *models(server.url, price="{read: 0.0, written: 0.0}"))
        with pytest.raises(BudgetError, match=r"budget\.tokens=4000"):
            go(tmp_path, *overrides, "budget.tokens=4000")
    assert 1000 < sum(int(entry["read"]) + int(entry["written"]) for entry in entries(tmp_path)) <= 4000


def test_the_ledger_is_that_of_the_server(whole):
    _, paid, once = whole
    assert sum(int(entry["requests"]) for entry in once) == paid
    assert {(entry["stage"], entry["model"]) for entry in once} == {
        ("generate", "alpha"), ("generate", "beta"), ("generate", "gamma"), ("benchmark", "alpha")
    }  # fmt: skip


def test_another_address_price_and_pace_go_on_where_the_first_stopped(whole, tmp_path):
    expected, paid, once = whole
    half = sum(float(entry["usd"]) for entry in once) / 2
    with served() as (first, overrides), pytest.raises(BudgetError):
        go(tmp_path, *overrides, f"budget.usd={half}")
    with served() as (second, overrides):
        more = ("api.concurrency=2", "api.attempts=3", "target.price.read=9.0", "writer.price.written=1.0")
        go(tmp_path, *overrides, *more)
        assert sum(first.answered.values()) + sum(second.answered.values()) == paid
        assert not first.answered.keys() & second.answered.keys()
        manifest = (tmp_path / "run" / "generate" / "manifest.json").read_text()
        assert "base_url" not in manifest
        assert "concurrency" not in manifest
        with pytest.raises(ConflictError, match=r"target\.model\.system"):
            go(tmp_path, *overrides, "target.system=Be brief.")
    assert results(tmp_path) == expected


def test_two_runs_at_once_share_what_they_pay(whole, tmp_path):
    expected, paid, _ = whole
    faults: list[BaseException] = []
    with served(delay=0.02) as (server, overrides):
        configs = [composed(tmp_path, *overrides, f"run_dir={tmp_path / name / 'run'}") for name in ("a", "b")]

        def work(config: dict[str, object]) -> None:
            try:
                execute(config, Progress(quiet=True))
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(config,)) for config in configs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        assert max(server.answered.values()) == 1
        assert sum(server.answered.values()) == paid
    assert results(tmp_path / "a") == results(tmp_path / "b") == expected


def test_without_a_cache_a_run_is_the_same(whole, tmp_path):
    with served() as (_, overrides):
        go(tmp_path, *overrides, "cache=null")
    assert results(tmp_path) == whole[0]
    assert not (tmp_path / "cache").exists()


def test_a_key_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY_KEY", "sk-canary-1c94e0")
    keyed = [f"{key}.key_variable=CANARY_KEY" for key in ("target", "writer", "judge_model")]
    with served(key="sk-canary-1c94e0") as (server, overrides):
        go(tmp_path, *overrides, *keyed)
        assert server.answered
    with served(key="another") as (_, overrides), pytest.raises(ValueError, match="CANARY_KEY") as refused:
        go(tmp_path / "wrong", *overrides, *keyed)
    assert "canary-1c" not in str(refused.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"canary-1c" in path.read_bytes()] == []


def test_a_judge_that_is_the_writer_is_refused_unless_it_is_meant(tmp_path):
    with served() as (server, overrides):
        same = (*overrides, "judge_model.id=beta", "judge_model.name=another_name")
        with pytest.raises(ConfigError, match=r"judge_model and writer are the same model .*self_judging=true"):
            go(tmp_path, *same)
        assert not server.log
        go(tmp_path, *same, "self_judging=true", "stages=[generate]")


def start(outputs: Path, url: str, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "evorefuse.run", *SMALL, *models(url), *overrides],
        cwd=ROOT,
        env={**os.environ, "EVOREFUSE_OUTPUTS": str(outputs)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def stored(outputs: Path) -> int:
    with closing(sqlite3.connect(outputs / "cache" / "lm.sqlite")) as db:
        return db.execute("SELECT count(*) FROM replies").fetchone()[0]


def left(outputs: Path, cell: str = "main") -> dict[str, bytes]:
    return {name: (outputs / "smoke" / cell / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(("reads", "done"), [(True, "answered"), (False, "unread")])
def test_the_server_tells_a_reply_that_was_read_from_one_that_died_in_the_socket(reads, done):
    body = b'{"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}'
    with Server() as server:
        client = socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0])))
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        while not server._log:
            time.sleep(0.001)
        if reads:
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()
        until = time.monotonic() + 2
        while server._log[0]["done"] != done and time.monotonic() < until:
            time.sleep(0.001)
        assert [entry["done"] for entry in server.log] == [done]


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(KILLS))
def test_a_run_killed_on_the_way_ends_in_the_same_files_and_asks_nothing_again(kill, whole, tmp_path):
    """The process that asks outlives the one that is killed, and stores what is on its way: nothing is asked again."""
    expected, paid, _ = whole
    chance = random.Random(kill)
    moment, later = chance.randrange(1, paid), chance.uniform(0.0, 0.1)
    with Server(delay=0.05) as server:
        process = start(tmp_path, server.url)
        while len(server._log) < moment and process.poll() is None:
            time.sleep(0.002)
        time.sleep(later)
        process.kill()
        process.wait()
        before, known = sum(server.answered.values()), stored(tmp_path)
        finish(start(tmp_path, server.url))
        again = sum(n - 1 for n in server.answered.values())
        print(f"killed at {before} of {paid} replies, {known} stored by then; asked again: {again}")
        assert (again, sum(server.answered.values())) == (0, paid)
    assert left(tmp_path) == expected


@pytest.mark.slow
def test_four_cells_at_once_on_one_cache(whole, tmp_path):
    """Cells that differ in a weight only: the search asks partly the same, and no process meets a lock."""
    _, paid, _ = whole
    weights = (0.0, 0.03, 0.1, 0.3)
    with Server(delay=0.02) as server:
        runs = [start(tmp_path, server.url, f"cell=w{w}", f"fitness.confidence_weight={w}") for w in weights]
        for process in runs:
            finish(process)
        assert max(server.answered.values()) == 1
        assert sum(server.answered.values()) < 4 * paid
    alone = tmp_path / "alone"
    with Server() as server:
        finish(start(alone, server.url, "cell=w0.1", "fitness.confidence_weight=0.1"))
    assert left(tmp_path, "w0.1") == left(alone, "w0.1")
