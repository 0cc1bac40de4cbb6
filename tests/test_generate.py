"""Stage generate with fakes: what it writes, and that a kill changes nothing."""

import itertools
import json
from pathlib import Path

import pytest
from fakes import UNSAFE, Bag, Landscape, MarkJudge, Notebook, Writer, hashed, instructions

from evorefuse.evolve import Schedule
from evorefuse.progress import Progress
from evorefuse.records import Summary, content_id
from evorefuse.stages import generate
from evorefuse.store import ConflictError, Store, read_jsonl

SEEDS = instructions("bake bread", "knit a sock", "plant a tree", "fold a crane", "boil " + UNSAFE)
FILES = [f"{arm}/{name}.jsonl" for arm in generate.ARMS for name in ("journal", "instructions", "path")]
CFG = generate.Settings(schedule=Schedule(steps=3, tau_start=0.5), chunk=2)


def work(folder: Path, *, seeds=SEEDS, cfg=CFG, seed=1, tracker=None, landscape=None) -> Summary:
    """The stage in a folder."""
    store = Store(folder)
    try:
        return generate.run(
            cfg=cfg, seed=seed, seeds=Bag(items=seeds), mutator=Writer(), control=Writer(alphabet="nm="),
            safety=MarkJudge(), fitness=landscape or Landscape(), store=store, tracker=tracker or Notebook(),
            progress=Progress(quiet=True),
        )  # fmt: skip
    finally:
        store.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Summary]:
    """An uninterrupted run and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, work(folder)


def test_the_best_of_each_lineage_is_written_with_how_it_came_about(whole):
    folder, _ = whole
    for arm in generate.ARMS:
        rows = list(read_jsonl(folder / arm / "instructions.jsonl"))
        assert [row["seed_id"] for row in rows] == [seed.id for seed in SEEDS[:4]]
        for row, seed in zip(rows, SEEDS[:4], strict=True):
            assert row["id"] == content_id(row["instruction"])
            assert row["fitness"]["value"] == hashed(row["instruction"]) >= hashed(seed.text)
            assert row["safety"]["label"] == "safe"
            lineage = row["lineage"]
            assert lineage[0]["instruction"] == seed.text
            assert lineage[-1]["id"] == row["id"]
            assert all(b["instruction"].startswith(a["instruction"]) for a, b in itertools.pairwise(lineage))
    assert any(len(row["lineage"]) > 2 for row in read_jsonl(folder / "evolved" / "instructions.jsonl"))


def test_the_path_holds_the_best_so_far_after_each_iteration(whole):
    folder, _ = whole
    rows = list(read_jsonl(folder / "evolved" / "path.jsonl"))
    assert {row["t"] for row in rows} == {-1, 0, 1, 2}
    for seed in SEEDS[:4]:
        own = [row for row in rows if row["seed_id"] == seed.id]
        heights = [row["fitness"]["value"] for row in sorted(own, key=lambda row: row["t"])]
        assert heights == sorted(heights)
        assert len(heights) == 4
        winner = next(r for r in read_jsonl(folder / "evolved" / "instructions.jsonl") if r["seed_id"] == seed.id)
        assert heights[-1] == winner["fitness"]["value"]


def test_the_summary_counts_what_the_journal_holds(whole):
    folder, summary = whole
    for arm in generate.ARMS:
        steps = [row["step"] for row in read_jsonl(folder / arm / "journal.jsonl")]
        later = [step for step in steps if step["t"] >= 0]
        metrics = {name.removeprefix(f"{arm}/"): m for name, m in summary.metrics.items() if name.startswith(arm)}
        assert metrics["lineages"].value == 4
        assert metrics["candidates"].value == sum(len(step["proposed"]) for step in later)
        assert metrics["not_harmless"].value == sum(step["n_unsafe"] for step in later)
        assert metrics["not_harmless"].n_unscored == sum(step["n_unjudged"] for step in later)
        assert metrics["failed"].value == sum(step["n_failed"] for step in later)
        assert metrics["seed_fitness"].value == pytest.approx(sum(hashed(seed.text) for seed in SEEDS[:4]) / 4)
        rows = list(read_jsonl(folder / arm / "instructions.jsonl"))
        assert metrics["best_fitness"].value == pytest.approx(sum(row["fitness"]["value"] for row in rows) / 4)
        assert (metrics["best_fitness"].n, metrics["best_fitness"].n_unscored) == (4, 0)
    assert summary.metrics["evolved/not_harmless"].value
    assert any("evolved: 1 of 5 seeds judged not harmless and 0 without a verdict" in note for note in summary.notes)


def test_nothing_unsafe_is_written(whole):
    for name, data in contents(whole[0]).items():
        assert UNSAFE not in data.decode("utf-8"), name


def test_a_rerun_of_a_finished_run_asks_for_nothing_and_changes_nothing(whole):
    folder, summary = whole
    before, landscape = contents(folder), Landscape()
    assert work(folder, landscape=landscape) == summary
    assert contents(folder) == before
    assert landscape.scored == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4, 0.5, 0.66, 0.8, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("arm", generate.ARMS)
def test_a_journal_cut_anywhere_resumes_to_the_same_bytes(whole, tmp_path, arm, share):
    before = contents(whole[0])
    for name in [f"{own}/journal.jsonl" for own in generate.ARMS] if arm == "neutral" else ["evolved/journal.jsonl"]:
        data = before[name]
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data[: int(share * len(data))] if name.startswith(arm) else data)
    landscape = Landscape()
    assert work(tmp_path, landscape=landscape) == whole[1]
    assert contents(tmp_path) == before


def test_a_kill_in_the_middle_of_a_step_resumes_to_the_same_bytes(whole, tmp_path):
    for calls in (1, 4, 9, 17):
        folder, asked = tmp_path / str(calls), Landscape()

        def dying(text: str, asked: Landscape = asked, calls: int = calls) -> float:
            if len(asked.scored) > 4 * calls:
                raise KeyboardInterrupt
            return hashed(text)

        asked.height = dying
        with pytest.raises(KeyboardInterrupt):
            work(folder, landscape=asked)
        assert work(folder) == whole[1]
        assert contents(folder) == contents(whole[0])


def test_the_size_of_a_chunk_does_not_change_a_lineage(whole, tmp_path):
    work(tmp_path, cfg=generate.Settings(schedule=CFG.schedule, chunk=64))
    assert contents(tmp_path)["evolved/instructions.jsonl"] == contents(whole[0])["evolved/instructions.jsonl"]


def test_seeds_that_changed_since_the_journal_was_begun_are_refused(whole, tmp_path):
    """Else lineages of the old seeds would be given out as those of the new ones."""
    for i, changed in enumerate((instructions("sew", *"bcde"), SEEDS[:3], SEEDS[::-1], SEEDS[:1])):
        (tmp_path / str(i) / "evolved").mkdir(parents=True)
        (tmp_path / str(i) / "evolved" / "journal.jsonl").write_bytes(contents(whole[0])["evolved/journal.jsonl"])
        with pytest.raises(ConflictError, match="the set has changed since"):
            work(tmp_path / str(i), seeds=changed)


def test_another_seed_is_another_run(whole, tmp_path):
    work(tmp_path, seed=2)
    assert contents(tmp_path)["evolved/path.jsonl"] != contents(whole[0])["evolved/path.jsonl"]


def test_no_harmless_seed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="none of the 2 seeds was judged harmless by marks"):
        work(tmp_path, seeds=instructions("a " + UNSAFE, "b " + UNSAFE))


def test_what_could_not_be_measured_is_counted(tmp_path):
    def holed(text: str) -> float:
        return float("nan") if hashed("hole" + text) < 0.4 and text not in {s.text for s in SEEDS} else hashed(text)

    summary = work(tmp_path, landscape=Landscape(height=holed))
    steps = [row["step"] for row in read_jsonl(tmp_path / "evolved/journal.jsonl")]
    missing = [c for step in steps for c in step["proposed"] if c["fitness"]["value"] is None]
    assert missing
    assert summary.metrics["evolved/candidates"].n_unscored == len(missing)
    assert all(row["fitness"]["value"] is not None for row in read_jsonl(tmp_path / "evolved/instructions.jsonl"))


def test_each_step_is_tracked_once_under_its_own_count(tmp_path):
    tracker = Notebook()
    work(tmp_path, tracker=tracker)
    logs = [call for call in tracker.calls if call[0] == "log" and call[1] == "generate/evolved"]
    assert [call[3] for call in logs] == list(range(1, 13))
    assert {"t", "tau", "n_unsafe", "n_failed"} <= set(logs[0][2])
    again = Notebook()
    work(tmp_path, tracker=again)
    assert not [call for call in again.calls if call[0] == "log"]


def test_odd_texts_go_through_as_text(tmp_path):
    odd = instructions("<script>alert(1)</script>", "كيف أخبز الخبز؟", "🍞", "a\nb\u2028c")
    work(tmp_path, seeds=odd)
    rows = [json.loads(line) for line in (tmp_path / "evolved/path.jsonl").read_text("utf-8").split("\n") if line]
    assert [row["instruction"] for row in rows if row["t"] == -1] == [x.text for x in odd]
