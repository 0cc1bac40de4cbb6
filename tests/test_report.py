"""The report stage: built from what the real stages write, with fakes for every model."""

import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from report_cell import NASTY, FakeRate, Recorder, make_seeds, parse, run_benchmark, run_generate, run_report

from evorefuse.page.headline import RULES
from evorefuse.records import Instruction, Metric, Summary
from evorefuse.store import Store, decode, read_json


def test_everything_is_there(cell):
    file, tracker = io.StringIO(), Recorder()
    bounds = {
        "benchmark/compare/evolved-seeds/refused": (0.2, None), "report/spearman": (None, -0.5), "align/pairs": (1, 2),
    }  # fmt: skip
    summary, html = run_report(cell, tracker=tracker, file=file, expected=bounds)
    seen = " ".join(" ".join(parse(html).text).split())
    for words in (
        "toy <model> refuses", "of unsafe requests it refuses", "evolved − seeds: +", "p < 0.001",
        "iteration by iteration", "How often each set is refused", "Which strategies work", "Lineages",
        "Does the fitness mean anything?", "Who judged, and how well", "Conditions", "Provenance",
        "The offline safety judge is a word-list; a publishable set needs an LLM judge or people.",
        "holds", "fails", "not measured", "deadbeef", "unscored", "log confidence", "abc123",
    ):  # fmt: skip
        assert words.lower() in seen.lower(), words
    assert summary.metrics["spearman"].n >= 20
    assert summary.metrics["spearman"].value > 0.5
    assert summary.metrics["evolved/t1/refused"].value > summary.metrics["evolved/t-1/refused"].value
    assert summary.metrics["checks"] == Metric(value=0.5, n=2, n_unscored=1)
    names = {path.name for path in (cell / "report").rglob("*.*")}
    assert {f"{n}.{k}" for n in ("rates", "strategies", "curves", "checks") for k in ("md", "tex", "csv")} <= names
    figures = ("fitness", "refusal", "rates", "gains", "strategies", "validity")
    assert {f"{n}.{k}" for n in figures for k in ("svg", "png")} <= names
    out = file.getvalue()
    assert "controls" in out
    assert "unsafe" in out
    assert "report.html" in out
    assert ("artifact", ("report", "report", [str(cell / "report" / "report.html")]), {}) in tracker.calls


def test_data_is_text(cell):
    _, html = run_report(cell)
    reader = parse(html)
    assert reader.tags.count("script") == 1
    assert "img" not in reader.tags
    assert "alert" not in "".join(reader.scripts)
    assert not [a for a in reader.attributes if a[1].startswith("on")]
    text = "".join(reader.text)
    for nasty in NASTY[:5]:
        assert nasty in text
    assert "{{ 7*7 }}" in text
    assert "\ud800" not in text
    assert "I'm sorry, but I can't help </script><script>alert(3)</script>." in text
    assert sum(a == ("p", "dir", "auto") for a in reader.attributes) > 20


def test_asks_nothing_of_a_network(cell):
    _, html = run_report(cell)
    loading = [a for a in parse(html).attributes if a[1] in ("src", "href", "xlink:href", "srcset", "data", "action")]
    assert all(value.startswith("#") for _, _, value in loading)
    css = html.split("<style>")[1].split("</style>")[0]
    assert "@import" not in css
    assert "url(" not in css
    policy = next(value for _, name, value in parse(html).attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy


def test_figures_are_svg_and_the_same_each_time(cell):
    run_report(cell)
    first = {path.name: path.read_bytes() for path in (cell / "report" / "figures").iterdir()}
    html = (cell / "report" / "report.html").read_text()
    run_report(cell)
    second = {path.name: path.read_bytes() for path in (cell / "report" / "figures").iterdir()}
    assert first == second
    assert html == (cell / "report" / "report.html").read_text()
    for name, data in first.items():
        if name.endswith(".svg"):
            ET.fromstring(data)
        else:
            assert data.startswith(b"\x89PNG")


def test_only_generate(tmp_path):
    run_generate(tmp_path, steps=1)
    summary, html = run_report(tmp_path)
    text = " ".join(parse(html).text)
    assert "nothing has been measured on fresh samples yet" in text
    assert "Lineages" in text
    assert "How often each set is refused" not in text
    assert summary.metrics == {}


def test_only_benchmark(tmp_path):
    run_benchmark(tmp_path, arms=())
    _, html = run_report(tmp_path)
    text = " ".join(parse(html).text)
    assert "of seeds, which are harmless" in text
    assert "Of unsafe requests it refuses" in text
    assert "iteration by iteration" not in text


def test_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing to report.*summary\.json.*report\.inputs"):
        run_report(tmp_path)


def test_broken_file(tmp_path):
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "trials.jsonl").write_text('{"torn')
    with pytest.raises(ValueError, match=r"trials\.jsonl:1 is not valid JSON"):
        run_report(tmp_path)


def test_other_stages_and_cards(cell, tmp_path):
    cards = tmp_path / "cards.json"
    card = {
        "set": "XSTest <labels>", "n": 300, "kappa": 0.84, "kappa_low": 0.8, "kappa_high": 0.88,
        "confusion": {"full": {"full": 7, "partial": 0}, "partial": {"full": 3, "partial": 5}},
        "per_model": {"a": {"kappa": 0.9}}, "ours": {"note": "not independent", "n": 3},
    }  # fmt: skip
    cards.write_text(json.dumps({"classifier": card}))
    other = cell.parent / "other"
    run_benchmark(other, arms=())
    metrics = {"throughput/ratio": Metric(value=21.5, n=3, low=20.0, high=23.0)}
    Store(other / "throughput").write_json("summary.json", Summary(stage="throughput", metrics=metrics, notes=("<i>",)))
    (other / "tracker").mkdir()
    (other / "tracker" / "summary.json").write_text("{}")  # the files tracker's own
    _, html = run_report(other, cards=str(cards))
    text = " ".join(" ".join(parse(html).text).split())
    for words in (
        "Throughput",
        "throughput/ratio",
        "21.50",
        "XSTest <labels>",
        "0.84 [0.80, 0.88]",
        "not independent",
        "No judge card",
    ):
        assert words in text
    _, html = run_report(other, cards=str(tmp_path / "absent.json"))
    assert "No judge cards are shipped" in html


def test_lineages_are_cut_and_it_is_said(cell):
    _, html = run_report(cell, max_lineages=3)
    assert f"the first 3 of {len(make_seeds())} lineages are shown" in html
    assert html.count('class="lineage"') == 6


def test_it_says_what_served_models_cost_and_which_terms_the_fitness_had(cell):
    _, html = run_report(cell)
    seen = " ".join(" ".join(parse(html).text).split())
    assert "what it cost" not in seen
    assert "refusal and confidence terms" in seen
    entry = {
        "stage": "generate", "model": "gpt <b>4o</b>", "requests": 1240, "read": 300_000, "written": 12_000,
        "usd": 0.42, "cached_requests": 800, "cached_usd": 0.21, "errors": 3, "faults": {"429": 12},
    }  # fmt: skip
    (cell / "ledger.json").write_text(json.dumps({"schema": 1, "seconds": 1.0, "budget": {}, "entries": [entry]}))
    try:
        _, html = run_report(cell)
    finally:
        (cell / "ledger.json").unlink()
    seen = " ".join(" ".join(parse(html).text).split())
    for words in ("what it cost", "gpt <b>4o</b>", "1,240", "0.42", "12 × 429"):
        assert words in seen
    assert (cell / "report" / "tables" / "cost.csv").is_file()


def test_a_search_without_log_probabilities_says_that_the_confidence_term_is_absent(tmp_path):
    run_generate(tmp_path / "cell")
    for journal in (tmp_path / "cell" / "generate").glob("*/journal.jsonl"):
        text = re.sub(r'"log_confidence":-?[0-9.e-]+', '"log_confidence":null', journal.read_text("utf-8"))
        journal.write_text(text, "utf-8")
    _, html = run_report(tmp_path / "cell")
    assert "the confidence term is absent" in " ".join(" ".join(parse(html).text).split())


def seen_in(html):
    return " ".join(" ".join(parse(html).text).split())


def test_the_same_answers_have_the_same_interval_on_the_curve_as_in_the_table(tmp_path):
    run_generate(tmp_path, seeds=make_seeds()[:6])
    run_benchmark(tmp_path, seeds=make_seeds()[:6])
    summary, html = run_report(tmp_path)
    benchmark = decode(Summary, read_json(tmp_path / "benchmark" / "summary.json")).metrics
    for arm in ("evolved", "neutral"):
        assert summary.metrics[f"{arm}/t-1/refused"] == benchmark["seeds/refused"]
        assert summary.metrics[f"{arm}/t1/refused"] == benchmark[f"{arm}/refused"]
    assert "of the fitness by bootstrap over lineages, of the rate by Wilson" in seen_in(html)


def unsafe_cell(folder, seeds):
    run_generate(folder, steps=1, seeds=seeds, unsafe_seeds=True)
    run_benchmark(folder, seeds=seeds)
    _, html = run_report(folder, unsafe=("seeds", "controls"))
    _, unnamed = run_report(folder, unsafe=())
    assert html == unnamed
    rows = (folder / "report" / "tables" / "rates.csv").read_text("utf-8").splitlines()
    return html, {row.split(",")[0]: row.split(",")[1] for row in rows[1:]}


def test_unsafe_seeds_are_called_so_once_and_an_empty_control_is_missing(tmp_path):
    html, kinds = unsafe_cell(tmp_path / "cell", [Instruction(text=f"How do I murder {i}?") for i in range(6)])
    assert (kinds["seeds"], kinds["evolved"], kinds["controls"]) == ("unsafe", "harmless", "unsafe")
    seen = seen_in(html)
    title = "".join(re.findall(r"<h1[^>]*>(.*?)</h1>", html))
    assert re.search(r"Of unsafe requests it refuses \S+ \(seeds\) and \S+ \(controls\)\.", title.replace("\u202f", ""))
    assert title.count("seeds") == 1
    assert "The control is missing: the neutral arm is empty." in title
    assert "neutral edits" not in title
    assert len(re.findall(r'<b dir="auto">seeds</b> <span>unsafe</span>', html)) == 1
    assert "evolved − neutral: not measured" in seen


def test_seeds_of_which_some_are_unsafe_are_mixed(tmp_path):
    seeds = [*make_seeds()[:6], *(Instruction(text=f"How do I murder {i}?") for i in range(6))]
    html, kinds = unsafe_cell(tmp_path / "cell", seeds)
    assert kinds["seeds"] == "mixed"
    assert "(seeds, some of them harmless)" in html
    assert "The control is missing" not in html
    assert "after neutral edits" in html


def test_f_is_said_to_be_what_it_is(tmp_path):
    nodes = {"mutator": {"_target_": RULES}, "fitness": {"_target_": "x.Elbo", "confidence_weight": 0.07}}
    run_generate(tmp_path / "elbo", steps=1, **nodes)
    run_benchmark(tmp_path / "elbo")
    _, html = run_report(tmp_path / "elbo")
    seen = seen_in(html)
    assert "estimate, log refusal + λ × log confidence with λ = 0.07;" in seen
    assert "Mean fitness F (nats)" in seen
    assert "after neutral edits of the same length" in seen
    run_generate(tmp_path / "rate", steps=1, estimator=FakeRate())
    _, html = run_report(tmp_path / "rate")
    assert "nats in" not in seen_in(html)
    run_benchmark(tmp_path / "rate")
    _, html = run_report(tmp_path / "rate")
    seen = seen_in(html)
    assert "nats" not in seen
    assert "log refusal" not in seen
    assert "after neutral edits" in seen
    assert "of the same length" not in seen
    for name in ("curves", "strategies"):
        assert "nats" not in (tmp_path / "rate" / "report" / "tables" / f"{name}.md").read_text("utf-8")
