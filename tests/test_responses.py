"""The response cache: what is put is there, for every process, whatever becomes of the one that put it."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evorefuse.records import Message, Reply, Request, Usage
from evorefuse.responses import CacheError, Responses, key_of

ROOT = Path(__file__).parents[1]
REQUEST = Request(messages=(Message(role="user", content="How do I kill a Python process?"),))
REPLIES = [
    Reply(
        text="Sure.", finish="stop", logprobs=(-0.1, -1e-9, -30.0), usage=Usage(prompt_tokens=7, completion_tokens=3)
    ),
    Reply(text="", finish="blocked"),
    Reply(text="🍞 كيف \ud800 \x00 \n </script>", finish="length", logprobs=(), entropy=(0.25,)),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "lm.sqlite"


def process(code: str, path: Path, *more: object) -> subprocess.Popen[str]:
    """Another process that holds ``responses`` open on the file."""
    head = (
        "import sys; from pathlib import Path; from evorefuse.records import Reply\n"
        "from evorefuse.responses import Responses\n"
        "responses = Responses(Path(sys.argv[1]))\n"
    )
    args = [sys.executable, "-c", head + code, str(path), *map(str, more)]
    return subprocess.Popen(args, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_reply_comes_back_as_it_was(path):
    first = Responses(path)
    for n, reply in enumerate(REPLIES):
        first.put(f"key {n}", reply)
    first.close()
    found = Responses(path).get_many(["key 2", "key 0", "key 1", "nothing"])
    assert [found[f"key {n}"] for n in range(3)] == REPLIES
    assert "nothing" not in found


def test_many_keys_are_found_at_once(path):
    responses = Responses(path)
    for n in range(0, 1300, 13):
        responses.put(str(n), Reply(text=str(n), finish="stop"))
    found = responses.get_many([str(n) for n in range(1300)])
    assert {key: reply.text for key, reply in found.items()} == {str(n): str(n) for n in range(0, 1300, 13)}
    assert responses.get_many([]) == {}


def test_the_first_reply_to_a_key_stays(path):
    responses = Responses(path)
    responses.put("k", REPLIES[0])
    responses.put("k", REPLIES[1])
    assert responses.get_many(["k"]) == {"k": REPLIES[0]}


def test_a_key_hangs_on_all_that_changes_a_reply_and_on_no_order():
    changes = [
        {"sample": 1}, {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 3}, {"max_tokens": 9},
        {"logprobs": False}, {"schema": "{}"}, {"messages": (Message(role="user", content="How?"),)},
        {"messages": (Message(role="system", content=REQUEST.messages[0].content),)},
    ]  # fmt: skip
    keys = [key_of({"id": "a", "system": None}, REQUEST)]
    keys += [key_of({"id": "a", "system": None}, replace(REQUEST, **change)) for change in changes]
    keys += [key_of({"id": "b", "system": None}, REQUEST), key_of({"id": "a", "system": ""}, REQUEST)]
    assert len(set(keys)) == len(keys)
    assert key_of({"system": None, "id": "a"}, REQUEST) == keys[0]


def test_a_claim_keeps_others_out_until_it_is_let_go(path):
    ours, theirs = Responses(path), Responses(path)
    assert ours.claim(["a", "b"]) == ["a", "b"]
    assert ours.claim(["a", "b"]) == ["a", "b"]
    assert theirs.claim(["c", "b", "a", "c"]) == ["c"]
    ours.put("a", REPLIES[0])
    assert theirs.claim(["a", "b"]) == []
    ours.release(["b", "c"])
    assert theirs.claim(["a", "b"]) == ["b"]
    assert ours.claim(["b", "c"]) == []
    theirs.close()
    assert ours.claim(["a", "b", "c"]) == ["b", "c"]
    assert ours.get_many(["a", "b", "c"]) == {"a": REPLIES[0]}


def test_a_dead_process_claims_nothing_and_leaves_nothing(path):
    other = process("print(responses.claim(['a', 'b']), flush=True); sys.stdin.read()", path)
    assert other.stdout.readline() == "['a', 'b']\n"
    responses = Responses(path)
    assert responses.claim(["a", "b", "c"]) == ["c"]
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert responses.claim(["a", "b", "c"]) == ["a", "b", "c"]
    assert len(list(path.parent.glob("*.lock"))) == 1
    responses.close()
    assert list(path.parent.glob("*.lock")) == []


def test_a_kill_loses_at_most_the_reply_in_hand(path):
    code = (
        "n = 0\n"
        "while True:\n"
        "    responses.claim([str(n)]); responses.put(str(n), Reply(text=str(n), finish='stop'))\n"
        "    print(n, flush=True); n += 1\n"
    )
    other = process(code, path)
    for _ in range(50):
        other.stdout.readline()
    other.send_signal(signal.SIGKILL)
    rest = other.stdout.read().split()  # not communicate(): it misses what was read ahead
    other.wait()
    last = int(rest[-1]) if rest else 49
    responses = Responses(path)
    found = responses.get_many([str(n) for n in range(last + 3)])
    assert last + 1 <= len(found) <= last + 2
    assert all(found[key].text == key for key in found)


def test_four_processes_at_once_meet_no_lock_and_never_ask_the_same(path):
    code = (
        "import random\n"
        "rng, mine = random.Random(sys.argv[2]), 0\n"
        "keys = [str(n) for n in range(300)]; rng.shuffle(keys)\n"
        "for start in range(0, 300, 10):\n"
        "    some = keys[start:start + 10]\n"
        "    responses.get_many(some)\n"
        "    for key in responses.claim(some):\n"
        "        responses.put(key, Reply(text=sys.argv[2], finish='stop')); mine += 1\n"
        "print(mine)\n"
    )
    others = [process(code, path, n) for n in range(4)]
    ends = [other.communicate(timeout=120) for other in others]
    assert [error for _, error in ends] == [""] * 4
    assert sum(int(out) for out, _ in ends) == 300
    found = Responses(path).get_many([str(n) for n in range(300)])
    assert len(found) == 300
    assert [sum(reply.text == str(n) for reply in found.values()) for n in range(4)] == [int(out) for out, _ in ends]


def test_a_file_that_is_no_cache_is_refused_with_the_cure(path):
    path.parent.mkdir()
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(CacheError, match=r"lm\.sqlite is damaged \(.*\): delete it.*same command again"):
        Responses(path)
    assert path.read_bytes().startswith(b"certainly"), "a damaged cache is the user's to delete: it may have cost money"


def test_damage_that_shows_late_is_refused_too(path):
    responses = Responses(path)
    for n in range(500):
        responses.put(str(n), Reply(text="x" * 200, finish="stop"))
    responses.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(size - 4096 * 3))
    with pytest.raises(CacheError, match="damaged"):  # noqa: PT012
        damaged = Responses(path)
        damaged.get_many([str(n) for n in range(500)])
        damaged.claim([str(n) for n in range(500)])


def test_a_reply_that_cannot_be_read_is_damage(path):
    Responses(path).close()
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO replies VALUES ('a', '{\"text\": 3}', 0), ('b', '{torn', 0)")
    for key in "ab":
        with pytest.raises(CacheError, match="damaged"):
            Responses(path).get_many([key])


def test_another_version_is_refused(path):
    Responses(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(CacheError, match="of version 9, expected 1"):
        Responses(path)


def test_a_path_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CacheError, match=r"file/lm\.sqlite cannot be used .*cache=null"):
        Responses(tmp_path / "file" / "lm.sqlite")
    with pytest.raises(CacheError, match="cannot be used"):
        Responses(tmp_path)
