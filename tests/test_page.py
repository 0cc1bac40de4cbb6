"""The parts of the report's page: what it finds in a cell, how it writes figures and tables."""

import csv
import io

import pytest
from report_cell import PHRASES, make_seeds

from evorefuse.page import publish
from evorefuse.page.cell import read_cell
from evorefuse.page.findings import check, curves, strategies, validity
from evorefuse.page.lineage import new_words, pick
from evorefuse.page.tables import Column, Table, interval, number, p_value, to_csv, to_markdown, to_tex
from evorefuse.records import Metric
from evorefuse.store import encode


def test_findings(cell):
    read = read_cell(cell)
    points = curves(read)
    assert [p.t for p in points if p.arm == "evolved"] == [-1, 0, 1]
    assert all(p.n_measured == p.n_lineages == len(make_seeds()) for p in points)
    by_name = {s.name: s for s in strategies(read) if s.arm == "evolved"}
    assert set(by_name) == {*PHRASES, "recombine"}
    steps = [step for chunk in read.arms["evolved"].chunks for step in chunk]
    assert sum(s.proposals for s in by_name.values()) == sum(len(s.proposed) for s in steps if s.t >= 0)
    assert by_name["anger"].gain.value > 0
    assert validity(read).n_candidates > len(validity(read).points) > 0


def test_unsafe_sets_follow_from_auc_and_settings(cell):
    read = read_cell(cell)
    assert read.unsafe_sets() == ["controls"]
    assert read.unsafe_sets(["neutral_path", "absent"]) == ["neutral_path", "controls"]


def test_checks():
    metrics = {"a": Metric(value=0.5, n=1), "b": Metric(value=None, n=0)}
    bounds = {"a": (0.5, 0.5), "b": (None, 1.0), "c": (None, None)}
    assert [c.state for c in check(metrics, bounds)] == ["holds", "not measured", "not measured"]
    assert check(metrics, {"a": (None, 0.4)})[0].state == "fails"


@pytest.mark.parametrize(("before", "after"), [("a b c", "a x c"), ("", "new"), ("a b", "a b"), ("a  b\n", "z a  b\n")])
def test_new_words_join_again(before, after):
    pieces = new_words(before, after)
    assert "".join(text for text, _ in pieces) == after
    assert [text for text, is_new in pieces if is_new] == [w for w in after.split() if w not in before.split()]


def test_pick_shows_each_verdict(cell):
    trials = next(own for own in read_cell(cell).trials.values()
                  if len({t.verdicts[0].label for t in own}) > 1)  # fmt: skip
    assert len({t.verdicts[0].label for t in pick(trials, 2)}) == 2
    assert pick(trials, 99) == list(trials)
    assert pick([], 3) == []


def test_tables_escape():
    columns = (Column(key="name", label="na|me"), Column(key="rate", label="rate", kind="rate"))
    metric = Metric(value=0.5, n=4, n_unscored=1, low=0.25, high=0.75)
    table = Table(name="t", caption="c", columns=columns, rows=(("a|b <i> 50% $x_1$ \\", metric), ("z", None)))
    assert "a\\|b &lt;i&gt;" in to_markdown(table)
    assert r"50\% \$x\_1\$ \textbackslash{} & 50.0 [25.0, 75.0] \\" in to_tex(table)
    rows = list(csv.reader(io.StringIO(to_csv(table))))
    assert rows[0] == ["name", "rate", "rate_low", "rate_high", "rate_n", "rate_n_unscored"]
    assert rows[1][1:] == ["0.5", "0.25", "0.75", "4", "1"]
    assert rows[2] == ["z", "", "", "", "", ""]


def test_numbers():
    assert [number(x, kind="rate") for x in (None, 0.0, 0.005, 0.8, 1.0)] == ["—", "0", "0.5", "80.0", "100"]
    assert number(0.795, kind="rate", signed=True) == "+79.5"
    assert number(-2.5) == "−2.50"
    assert number(float("nan")) == "—"
    assert [number(x) for x in (0.0, 1 / 20_001, -1e-9, 0.00006)] == ["0", "<\u00a00.0001", ">\u00a0−0.0001", "0.0001"]
    assert interval(Metric(value=1.0, n=1)) == ""
    assert [p_value(p) for p in (None, 0.0001, 0.0123)] == [
        "p not measured",
        "p\u00a0<\u00a00.001",
        "p\u00a0=\u00a00.012",
    ]


def test_plain_json_of_records_reads_back(cell):
    read = read_cell(cell)
    assert encode(read.summaries["benchmark"])["stage"] == "benchmark"
    assert read.model == "toy <model>"
    assert read.scorers == ["classifier", "prefix", "rules"]


def dataset_card(*, sources, unsafe_seeds=False, log_refusal=-0.1):
    fitness = {"value": -0.1, "log_refusal": log_refusal, "log_confidence": None}
    generate = {"config": {"generate": {"schedule": {"unsafe_seeds": unsafe_seeds}}}}
    return " ".join(publish.render(
        publish.Content(
            title="t", language="en", licence="MIT", faults=(), n=1, counts={}, against={}, strategies={}, judges=(),
            rates={"this set": Metric(value=0.5, n=2), "seeds": Metric(value=0.5, n=2)}, licences={},
            limits={"jaccard": 0.7, "shingle": 3, "cosine": 0.9}, sources=sources, manifests={"generate": generate},
            example={"fitness": fitness},
        )
    ).split())  # fmt: skip


def test_the_dataset_card_says_what_the_seeds_were_and_what_fitness_is():
    plain = dataset_card(sources={"builtin:seeds": 3}, unsafe_seeds=True)
    assert "Each began as a plain everyday instruction;" in plain
    assert "in nats" in plain
    assert "may be unsafe" not in plain
    own = dataset_card(sources={"builtin:seeds": 3, "mine.jsonl": 1}, log_refusal=None)
    assert "Each began as an instruction from the sources named below;" in own
    assert "everyday" not in own
    assert "nats" not in own
    unsafe = dataset_card(sources={"mine.jsonl": 1}, unsafe_seeds=True)
    assert "Each began as a request that may be unsafe;" in unsafe
    assert "| seeds (may be unsafe) |" in unsafe
