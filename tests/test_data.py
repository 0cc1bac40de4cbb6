"""The texts that the package ships: sizes, forms, and that no set leaks into another or copies a public one."""

import csv
import json
import os
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations
from pathlib import Path

import pytest

PUBLIC = Path(os.environ.get("EVOREFUSE_PUBLIC_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
PUBLIC_SETS = (("xstest_prompts.csv", "prompt"), ("oktest.csv", "prompt"), ("advbench_120.csv", "goal"))
FIELDS = {
    "guard_unsafe": {"instruction", "category", "split"},
    "guard_refusals": {"refusal"},
    "guard_everyday": {"instruction", "length", "split"},
    "guard_sharp": {"instruction", "split"},
    "seeds": {"instruction", "domain"},
    "controls": {"instruction", "category"},
    "probe_additions": {"kind", "position", "text"},
}
TEXT = {"guard_refusals": "refusal", "probe_additions": "text"}
STEMS = {("what", "is", "the", "best", "way", "to")}  # a bare opening of a question belongs to nobody
SENSITIVE = re.compile(
    r"\b(kill|murder|dead|death|die|dying|shoot|shot|gun|knife|weapon|bomb|explo\w+|blow|blast|burn|fire|attack|fight"
    r"|war|beat|hit|punch|kick|stab|blood\w*|drug|poison|toxic|steal|stole|thief|rob|hack|crack|crash|smash|crush"
    r"|destroy|ruin|hate|hateful|rage|furious|disgust\w*|racist|cheat|virus|threat\w*|terrif\w+|cruel|torture|hurt|harm"
    r"|slash|strike|whip|secretly|wreck|hunt|drown|victim|despair|desperate|scar|scary|stupid)(s|ed|ing|er)?\b"
)


def rows(name: str) -> list[dict[str, str]]:
    lines = files("evorefuse.data").joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def text(name: str, row: dict[str, str]) -> str:
    return row[TEXT.get(name, "instruction")]


def words(value: str) -> list[str]:
    return re.findall(r"[\w']+", value.casefold().replace("’", "'"))


def normalised(value: str) -> str:
    return " ".join(words(value))


def grams(value: str, n: int) -> set[tuple[str, ...]]:
    found = words(value)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


def all_grams(values: list[str], n: int) -> set[tuple[str, ...]]:
    return set().union(*(grams(value, n) for value in values))


def full(row: dict[str, str]) -> str:
    """The instruction with what stands around it."""
    return row.get("padded", row["instruction"])


@pytest.mark.parametrize("name", FIELDS)
def test_lines_have_their_fields_and_are_unique(name):
    data = rows(name)
    for row in data:
        assert FIELDS[name] <= set(row) <= FIELDS[name] | {"padded"}
        assert all(isinstance(value, str) and value == value.strip() and value for value in row.values())
    counts = Counter(normalised(text(name, row)) for row in data)
    assert [value for value, n in counts.items() if n > 1] == []


def test_unsafe_requests():
    data = rows("guard_unsafe")
    train = [row for row in data if row["split"] == "train"]
    held_out = [row for row in data if row["split"] == "held_out"]
    assert len(train) >= 120
    assert len(held_out) >= 45
    assert len({row["category"] for row in train}) >= 14
    assert {row["category"] for row in held_out} == {row["category"] for row in train}
    assert [row for row in data if not 4 <= len(row["instruction"].split()) <= 16] == []
    padded = [row for row in train if "padded" in row]
    assert len(padded) >= len(train) / 3
    assert all(row["instruction"] in row["padded"] != row["instruction"] for row in padded)
    assert not any("padded" in row for row in held_out)


def test_everyday_requests():
    data = rows("guard_everyday")
    counts = Counter((row["split"], row["length"]) for row in data)
    assert min(counts["train", "short"], counts["train", "long"]) >= 130
    assert min(counts["held_out", "short"], counts["held_out", "long"]) >= 35
    assert sum(counts.values()) == len(data)
    bounds = {"short": (5, 14), "long": (25, 80)}
    wrong = [r for r in data if not bounds[r["length"]][0] <= len(r["instruction"].split()) <= bounds[r["length"]][1]]
    assert wrong == []


def test_sharp_requests():
    data = rows("guard_sharp")
    counts = Counter(row["split"] for row in data)
    assert min(counts["train"], counts["held_out"]) >= 40
    assert sum(counts.values()) == len(data)
    assert [row for row in data if not 3 <= len(row["instruction"].split()) <= 16] == []
    everyday = [row for row in rows("guard_everyday") if row["split"] == "train"]
    assert counts["train"] < len(everyday) / 2, "else it forgets to shy at words"


@pytest.mark.parametrize("name", ["guard_everyday", "seeds"])
def test_harmless_texts_carry_no_sensitive_word(name):
    assert [(m.group(), text(name, r)) for r in rows(name) if (m := SENSITIVE.search(text(name, r).casefold()))] == []


def test_seeds_and_controls():
    seeds, controls = rows("seeds"), rows("controls")
    assert len(seeds) >= 160
    assert len({row["domain"] for row in seeds}) >= 12
    assert [row for row in seeds if not 4 <= len(row["instruction"].split()) <= 14] == []
    assert [row for row in seeds if not re.fullmatch(r"[^.?!]+[.?!]", row["instruction"])] == []
    assert len(controls) >= 110
    assert {row["category"] for row in controls} == {row["category"] for row in rows("guard_unsafe")}
    assert len(rows("guard_refusals")) >= 10


def test_probe_additions_are_balanced_and_new():
    probes = rows("probe_additions")
    assert Counter(row["kind"] for row in probes) == {"neutral": 16, "sensitive": 16}
    lengths = {
        kind: sum(len(words(row["text"])) for row in probes if row["kind"] == kind) / 16
        for kind in ("neutral", "sensitive")
    }
    assert abs(lengths["neutral"] - lengths["sensitive"]) < 1
    guard = normalised(
        " ".join(full(row) for name in ("guard_unsafe", "guard_everyday", "guard_sharp") for row in rows(name))
    )
    assert [row for row in probes if normalised(row["text"]) in guard] == []
    assert [row for row in probes if row["kind"] == "neutral" and SENSITIVE.search(row["text"].casefold())] == []


@pytest.mark.parametrize(("one", "other"), list(combinations(FIELDS, 2)))
def test_sets_are_disjoint(one, other):
    assert {normalised(text(one, r)) for r in rows(one)} & {normalised(text(other, r)) for r in rows(other)} == set()


@pytest.mark.parametrize("name", ["guard_unsafe", "guard_everyday", "guard_sharp"])
def test_held_out_shares_no_six_words_with_train(name):
    data = rows(name)
    train = all_grams([full(row) for row in data if row["split"] == "train"], 6)
    assert all_grams([full(row) for row in data if row["split"] == "held_out"], 6) & train == set()


def test_controls_share_no_five_words_with_the_guard():
    guard = all_grams([full(row) for row in rows("guard_unsafe")], 5)
    assert all_grams([row["instruction"] for row in rows("controls")], 5) & guard == set()


def test_seeds_share_no_six_words_with_the_guard():
    guard = all_grams([row["instruction"] for row in rows("guard_everyday")], 6)
    assert all_grams([row["instruction"] for row in rows("seeds")], 6) & guard == set()


@pytest.mark.parametrize(("file", "column"), PUBLIC_SETS)
def test_nothing_is_taken_from_public_sets(file, column):
    path = PUBLIC / file
    if not path.exists():
        pytest.skip(f"{path} is absent: set EVOREFUSE_PUBLIC_DATA to the folder of the public sets")
    with path.open(encoding="utf-8", newline="") as stream:
        public = [row[column] for row in csv.DictReader(stream)]
    assert len(public) > 100
    ours = [row.get("padded", text(name, row)) for name in FIELDS for row in rows(name)]
    ours += [text(name, row) for name in FIELDS for row in rows(name)]
    assert {normalised(value) for value in ours} & {normalised(value) for value in public} == set()
    assert (all_grams(ours, 6) & all_grams(public, 6)) - STEMS == set()
