"""The run folder: whole files or none, journals that survive a kill, and no two configurations in one folder."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from evorefuse.records import Candidate, Fitness, Instruction, Metric, Reply, Step, Summary, Usage, Verdict
from evorefuse.store import (
    ConflictError,
    Journal,
    Store,
    config_hash,
    decode,
    differing_keys,
    dumps,
    encode,
    read_json,
    read_jsonl,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
KINDS = [Candidate, Fitness, Instruction, Metric, Reply, Step, Summary, Usage, Verdict]


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "stage")
    yield made
    made.close()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_record_comes_back_from_disk_as_it_was(kind, data):
    st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
    st.register_type_strategy(str, texts)
    record = data.draw(st.from_type(kind))
    assert decode(kind, json.loads(dumps(record))) == record
    assert "\n" not in dumps(record)


def test_text_is_written_as_it_reads_and_a_lone_surrogate_does_not_break_the_file(store):
    path = store.write_jsonl("x.jsonl", [{"a": "كيف 🍞 \u2028 <b>"}, {"a": "\ud800"}])
    assert "كيف 🍞" in path.read_text("utf-8")
    assert [row["a"] for row in read_jsonl(path)] == ["كيف 🍞 \u2028 <b>", "?"]


def test_what_is_not_json_is_refused(store):
    with pytest.raises(ValueError, match="JSON"):
        dumps({"a": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        store.write_json("a.json", {"a": float("inf")})
    assert not (store.folder / "a.json").exists()


def test_plain_data_is_kept_and_paths_become_text():
    assert encode({1: (Path("/a"), [Usage(prompt_tokens=3)])}) == {
        "1": ["/a", [{"prompt_tokens": 3, "completion_tokens": 0}]]
    }


@given(st.dictionaries(texts, plain, max_size=5), st.randoms())
def test_a_configurations_hash_does_not_hang_on_the_order_of_keys(config, rng):
    keys = list(config)
    rng.shuffle(keys)
    assert config_hash({key: config[key] for key in keys}) == config_hash(config)
    assert config_hash({**config, "another": 1}) != config_hash(config)


def test_differing_keys_are_named_with_both_values():
    old = {"a": {"b": 1, "same": 0}, "gone": 2, "kind": {"x": 1}}
    new = {"a": {"b": 2, "same": 0}, "new": None, "kind": 3}
    assert differing_keys(old, new) == [
        "a.b (there 1, now 2)",
        "gone (there 2, now '<absent>')",
        "kind (there {'x': 1}, now 3)",
        "new (there '<absent>', now None)",
    ]
    assert differing_keys(old, old) == []


def test_a_journal_gives_back_its_rows(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for n in range(3):
        journal.append({"n": n})
    assert journal.rows == Journal(tmp_path / "j.jsonl").rows == [{"n": 0}, {"n": 1}, {"n": 2}]


def test_every_appended_row_is_on_disk_at_once_in_whole_lines(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for n in range(3):
        journal.append({"n": n, "text": "a\nb\r\u2028"})
        assert (tmp_path / "j.jsonl").read_bytes().count(b"\n") == n + 1


def test_a_journal_cut_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    rows = [{"n": n, "text": "é🍞" * n} for n in range(4)]
    for row in rows:
        journal.append(row)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        n = whole[:cut].count(b"\n")
        assert again.rows == rows[:n]
        for row in rows[n:]:
            again.append(row)
        assert path.read_bytes() == whole


def test_a_line_damaged_in_the_middle_is_an_error_that_names_it(tmp_path):
    (tmp_path / "j.jsonl").write_text('{"n": 0}\n{"n": \n{"n": 2}\n')
    for read in (Journal, lambda path: list(read_jsonl(path))):
        with pytest.raises(ValueError, match=r"j\.jsonl:2"):
            read(tmp_path / "j.jsonl")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid"):
        read_json(tmp_path / "x.json")


def test_a_result_is_whole_or_not_there(store, monkeypatch):
    store.write_text("sub/x.txt", "first")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        store.write_text("sub/x.txt", "second")
    assert (store.folder / "sub/x.txt").read_text() == "first"
    assert [path.name for path in (store.folder / "sub").iterdir()] == ["x.txt"]


def test_until_the_new_file_is_whole_the_old_one_stands(store, monkeypatch):
    store.write_text("x.txt", "first")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        store.write_text("x.txt", "second")
    assert (store.folder / "x.txt").read_text() == "first"


def test_a_broken_row_leaves_the_old_file(store):
    store.write_jsonl("x.jsonl", [{"n": 1}])
    with pytest.raises(ValueError, match="JSON"):
        store.write_jsonl("x.jsonl", [{"n": 2}, {"n": float("inf")}])
    assert list(read_jsonl(store.folder / "x.jsonl")) == [{"n": 1}]


def test_bytes_and_tensors_are_written(store):
    assert store.write_bytes("p.png", b"\x89P").read_bytes() == b"\x89P"
    path = store.write_tensors("w.safetensors", {"a": np.arange(3.0)})
    assert load_file(path)["a"].tolist() == [0.0, 1.0, 2.0]


def test_two_runs_never_share_a_folder(store):
    with pytest.raises(ConflictError, match="in use"):
        Store(store.folder)
    code = f"from pathlib import Path; from evorefuse.store import Store; Store(Path({str(store.folder)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConflictError" in other.stderr
    store.close()
    Store(store.folder).close()


def test_another_configuration_is_refused_by_its_keys_and_the_old_manifest_stays(store):
    store.claim({"a": {"b": 1}, "path": Path("/x")}, facts={"start": "then"})
    before = (store.folder / "manifest.json").read_bytes()
    with pytest.raises(ConflictError, match=r"a\.b \(there 1, now 2\)") as caught:
        store.claim({"a": {"b": 2}, "path": Path("/x")}, facts={"start": "now"})
    assert "path" not in str(caught.value).partition("keys differ")[2].partition(". Give")[0]
    assert (store.folder / "manifest.json").read_bytes() == before


def test_the_same_configuration_resumes_and_keeps_its_start_and_commit(store):
    store.claim({"a": 1}, facts={"start": "then", "commit": "x"})
    store.identify({"target": {"id": "m"}})
    store.complete(end="later", n=3)
    assert read_json(store.folder / "manifest.json")["end"] == "later"
    store.claim({"a": 1}, facts={"start": "now", "commit": "x"})
    assert "resumed" not in read_json(store.folder / "manifest.json")
    for commit, dirty in (("y", False), ("y", True), ("x", False), ("y", False)):
        store.claim({"a": 1}, facts={"start": "now", "commit": commit, "dirty": dirty})
    manifest = read_json(store.folder / "manifest.json")
    assert (manifest["start"], manifest["commit"], manifest["end"]) == ("then", "x", None)
    assert manifest["resumed"] == ["y", "y with changes"]
    assert manifest["identities"] == {"target": {"id": "m"}}
    assert manifest["config_hash"] == config_hash({"a": 1})


def test_another_model_behind_the_same_configuration_is_refused(store):
    store.claim({"a": 1}, facts={})
    store.identify({"target": {"adapter": "one"}})
    store.claim({"a": 1}, facts={})
    store.identify({"target": {"adapter": "one"}})
    with pytest.raises(ConflictError, match=r"target\.adapter"):
        store.identify({"target": {"adapter": "two"}})


def test_a_derived_stage_is_rebuilt_whatever_was_there(store):
    store.claim({"a": 1}, facts={})
    store.identify({"m": 1})
    store.claim({"a": 2}, facts={}, derived=True)
    store.identify({"m": 2}, derived=True)
    assert read_json(store.folder / "manifest.json")["config"] == {"a": 2}


@dataclass(frozen=True)
class Odd:
    """A record with a default."""

    n: int = 0


def test_what_does_not_fit_a_record_is_refused_by_field():
    with pytest.raises(ValueError, match="n\n"):
        decode(Odd, {"n": "three"})
