"""Instruction sets: broken input is a clear error or a counted skip."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evorefuse.records import content_id
from evorefuse.source import hub
from evorefuse.source.builtin import Builtin
from evorefuse.source.hub import Hub
from evorefuse.source.jsonl import File

SHA = "0123456789abcdef0123456789abcdef01234567"
HTML = "Explain <script>alert('x')</script> & <b>tags</b>"


def jsonl(folder: Path, *rows: Any, name: str = "set.jsonl") -> str:
    """A file of these rows; text is written as it is."""
    path = folder / name
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def texts(path: str, **settings: Any) -> list[str]:
    return [instruction.text for instruction in File(path=path, **settings).load()]


def test_texts_are_kept_in_order_and_as_text(tmp_path):
    odd = ["🍞 how?", "كيف أخبز الخبز؟", HTML, "line\nbreak", "{slot|slot}", "sep\u2028arator"]
    assert texts(jsonl(tmp_path, *({"instruction": text} for text in odd))) == odd


def test_broken_lines_are_counted_and_skipped(tmp_path, caplog):
    path = jsonl(
        tmp_path, {"instruction": "a"}, "{broken", "", "[1, 2]", "7", {"other": 1}, {"instruction": "  "},
        {"instruction": None}, {"instruction": 3}, {"instruction": "b"}, {"instruction": " a "}, "[" * 100_000,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert texts(path) == ["a", "b"]
    assert "9 rows skipped (4 broken, 4 without text, 1 repeated), 2 instructions kept" in caplog.text


def test_a_text_of_10000_characters_is_counted_and_skipped(tmp_path, caplog):
    path = jsonl(tmp_path, {"instruction": "x" * 10_000}, {"instruction": "short"})
    with caplog.at_level(logging.WARNING):
        assert texts(path) == ["short"]
    assert "1 too long" in caplog.text
    assert texts(path, max_chars=10_000) == ["x" * 10_000, "short"]


def test_a_byte_order_mark_is_no_part_of_the_set(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"instruction": "a"}\n{"instruction": "b"}\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfinstruction\na\nb\n")
    assert texts(str(tmp_path / "a.jsonl")) == ["a", "b"]
    assert texts(str(tmp_path / "a.csv")) == ["a", "b"]


def test_windows_line_ends_and_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"instruction": "a"}\r\n{"instruction": "b\xff"}\r\n')
    assert texts(str(tmp_path / "a.jsonl")) == ["a", "b\ufffd"]


def test_half_a_surrogate_pair_cannot_enter(tmp_path):
    """Such a text could not be written to disk as it is, so a resumed run would not be the same run."""
    found = texts(jsonl(tmp_path, '{"instruction": "a \\ud800 b"}', {"instruction": "b"}))
    assert [text.encode("utf-8") for text in found] == [b"a ? b", b"b"]


def test_csv_with_newlines_quotes_and_too_many_fields(tmp_path, caplog):
    path = tmp_path / "set.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "prompt"], ["1", 'two\nlines, "quoted"'], ["2", "b", "more"], ["3"], ["4", "c"]]
        )
    with caplog.at_level(logging.WARNING):
        assert texts(str(path), column="prompt") == ['two\nlines, "quoted"', "c"]
    assert "1 broken, 1 without text" in caplog.text


def test_a_csv_field_beyond_the_readers_limit_is_no_crash(tmp_path):
    (tmp_path / "set.csv").write_text("instruction\n" + "x" * 200_000 + "\nshort\n")
    assert texts(str(tmp_path / "set.csv")) == ["short"]


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="give the path of a JSONL or CSV file"):
        File(path=str(tmp_path / "none.jsonl")).load()
    with pytest.raises(FileNotFoundError):
        File(path=str(tmp_path)).load()


@pytest.mark.parametrize("content", ["", "\n\n", "{broken\n", '{"instruction": ""}\n'])
def test_an_empty_set_is_an_error_with_the_counts(tmp_path, content):
    (tmp_path / "set.jsonl").write_text(content)
    with pytest.raises(ValueError, match="no usable instruction"):
        File(path=str(tmp_path / "set.jsonl")).load()
    (tmp_path / "set.csv").write_text("")
    with pytest.raises(ValueError, match="no usable instruction"):
        File(path=str(tmp_path / "set.csv")).load()


def test_a_wrong_column_names_those_that_are_there(tmp_path):
    with pytest.raises(ValueError, match=r"'promt'.*'id', 'prompt'"):
        File(path=jsonl(tmp_path, {"id": 1, "prompt": "a"}), column="promt").load()


def test_rows_are_kept_by_value_and_drawn_by_seed(tmp_path):
    path = jsonl(tmp_path, *({"instruction": f"t{i}", "label": i % 2} for i in range(40)))
    odd = texts(path, where={"label": "1"})
    assert odd == [f"t{i}" for i in range(1, 40, 2)]
    drawn = texts(path, where={"label": "1"}, sample=5, seed=3)
    assert drawn == texts(path, where={"label": "1"}, sample=5, seed=3)
    assert len(drawn) == 5
    assert drawn == [text for text in odd if text in drawn]
    assert drawn != texts(path, where={"label": "1"}, sample=5, seed=4)
    assert texts(path, sample=99) == [f"t{i}" for i in range(40)]


def test_our_own_files_bring_their_lineage(tmp_path):
    row = {
        "instruction": "a!", "seed_id": content_id("a"), "parents": [content_id("a")], "trail": ["anger/x"],
        "source": "builtin:seeds", "reason": "because",
    }  # fmt: skip
    (found,) = File(path=jsonl(tmp_path, row)).load()
    assert (found.seed_id, found.parents, found.trail) == (row["seed_id"], (row["seed_id"],), ("anger/x",))
    assert (found.strategy, found.source, found.reason) == ("anger", "builtin:seeds", "because")
    (bare,) = File(path=jsonl(tmp_path, {"instruction": "a"})).load()
    assert (bare.seed_id, bare.parents, bare.trail, bare.source, bare.reason) == ("", (), (), "set.jsonl", "")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


rows_of = st.fixed_dictionaries(
    {"instruction": st.text(max_size=5)},
    optional=dict.fromkeys(["seed_id", "parents", "trail", "source", "reason"], anything),
)


@given(st.lists(rows_of | anything, max_size=6))
@settings(deadline=None, max_examples=150)
def test_no_row_however_odd_breaks_the_set(tmp_path_factory, rows):
    path = jsonl(tmp_path_factory.mktemp("odd"), *(json.dumps(row) for row in rows))
    try:
        found = File(path=path).load()
    except ValueError as error:
        if "no usable instruction" not in str(error):
            raise
        return
    assert len({x.id for x in found}) == len(found)
    assert all(x.text and x.text == x.text.strip() and all(isinstance(p, str) for p in x.parents) for x in found)


def test_shipped_sets_by_name():
    assert len(Builtin(set="seeds").load()) >= 150
    assert len(Builtin(set="seeds", sample=7).load()) == 7
    assert Builtin(set="seeds", sample=7, seed=1).load() != Builtin(set="seeds", sample=7, seed=2).load()
    cooking = Builtin(set="seeds", where={"domain": "cooking"}).load()
    assert 0 < len(cooking) < 150
    with pytest.raises(FileNotFoundError, match=r"'seedz'; there are: .*seeds"):
        Builtin(set="seedz").load()
    with pytest.raises(ValueError, match="domain"):
        Builtin(set="seeds", where={"domain": "none"}).load()


@pytest.mark.parametrize("revision", ["main", "v1.0", SHA[:8], SHA.upper(), ""])
def test_a_hub_set_at_a_revision_that_could_move_is_refused(revision):
    with pytest.raises(ValueError, match="40-digit commit SHA"):
        Hub(id="a/b", revision=revision, column="prompt")


@pytest.fixture
def table(monkeypatch):
    """A hub that holds one table; what it was asked for."""
    asked: list[tuple[Any, ...]] = []
    rows = [
        {"prompt": text, "type": kind} for text, kind in ((" a ", "x"), ("b", "y"), ("", "x"), ("a", "x"), (None, "x"))
    ]

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        asked.append((*args, kwargs))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(hub, "load_dataset", load)
    return asked


def test_a_hub_set_is_asked_for_at_its_revision(table):
    found = Hub(id="a/b", revision=SHA, column="prompt", config="hard", split="test").load()
    assert table == [("a/b", "hard", {"split": "test", "revision": SHA})]
    assert [x.text for x in found] == ["a", "b"]
    assert {x.source for x in found} == {f"a/b@{SHA[:8]}"}
    assert [x.text for x in Hub(id="a/b", revision=SHA, column="prompt", where={"type": "y"}).load()] == ["b"]


@pytest.mark.usefixtures("table")
def test_a_hub_set_without_the_column_or_rows_is_an_error():
    with pytest.raises(ValueError, match=r"no column 'instruction'.*'prompt', 'type'"):
        Hub(id="a/b", revision=SHA, column="instruction").load()
    with pytest.raises(ValueError, match="no row"):
        Hub(id="a/b", revision=SHA, column="prompt", where={"type": "z"}).load()


def test_a_hub_set_goes_through_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set", {"prompt": HTML}, {"prompt": "🍞"}, name="train.jsonl")
    found = Hub(id=str(tmp_path / "set"), revision=SHA, column="prompt").load()
    assert [x.text for x in found] == [HTML, "🍞"]


def test_a_file_without_a_row_is_an_empty_set_only_where_that_is_allowed(tmp_path):
    path = tmp_path / "candidates.jsonl"
    path.write_text("", "utf-8")
    with pytest.raises(ValueError, match="no usable instruction"):
        File(path=str(path)).load()
    assert File(path=str(path), allow_empty=True, sample=60).load() == []
    path.write_text('{"prompt": "x"}\n', "utf-8")  # rows without the column are a fault all the same
    with pytest.raises(ValueError, match="no usable instruction"):
        File(path=str(path), allow_empty=True).load()
