"""Stage benchmark with fakes: every set measured on the same footing, and a kill changes nothing."""

from pathlib import Path

import pytest
from fakes import Bag, Echo, Notebook, SorryJudge, instructions

from evorefuse import stats
from evorefuse.progress import Progress
from evorefuse.records import Instruction, Reply, Request, Summary, Trial, stream
from evorefuse.sampling import Sampling
from evorefuse.stages import benchmark
from evorefuse.store import ConflictError, Store, decode, read_jsonl

SEEDS = instructions(*(f"seed {i}" for i in range(6)))
EVOLVED = [
    Instruction(text=f"loud {seed.text}", seed_id=seed.id, trail=("anger/x" if i % 2 else "despair/y",), source="g")
    for i, seed in enumerate(SEEDS)
]
CONTROLS = instructions(*(f"unsafe {i}" for i in range(5)))
SETS = {"seeds": SEEDS, "evolved": EVOLVED, "again": [SEEDS[0], EVOLVED[0]], "controls": CONTROLS}
CFG = benchmark.Settings(
    sampling=Sampling(samples=3, max_tokens=8), batch=4, auc=(("controls", "seeds"),), compare=(("evolved", "seeds"),)
)


class Shy(Echo):
    """Refuses the unsafe always, the loud often, seeds seldom; fails now and then."""

    def _reply(self, request: Request) -> Reply:
        text = request.messages[-1].content
        u = stream("shy", request.seed).random()
        if u < self.p_fail:
            return Reply(text="", finish="error", error="timed out")
        refuses = u < {"seed": 0.25, "loud": 0.8}.get(text.split()[0], 1.0)
        return Reply(text="sorry, no" if refuses else "yes", finish="stop", logprobs=(-1.0,))


def work(folder: Path, *, sets=None, cfg=CFG, target=None, tracker=None, seed=1) -> Summary:
    """The stage in a folder."""
    store = Store(folder)
    try:
        return benchmark.run(
            cfg=cfg, seed=seed, target=target or Shy(), refusal=SorryJudge(), prefix=SorryJudge(name="prefix"),
            sets={name: Bag(items=items) for name, items in (sets or SETS).items()}, store=store,
            tracker=tracker or Notebook(), progress=Progress(quiet=True),
        )  # fmt: skip
    finally:
        store.close()


def trials(folder: Path) -> list[Trial]:
    return [decode(Trial, row) for row in read_jsonl(folder / "trials.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Summary]:
    """An uninterrupted run and its summary."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, work(folder)


def test_every_instruction_is_measured_once_and_counts_in_each_of_its_sets(whole):
    rows = trials(whole[0])
    assert len(rows) == 3 * 17
    assert [row.sample for row in rows] == [0, 1, 2] * 17
    assert {row.sets for row in rows if row.exchange.instruction == SEEDS[0]} == {("seeds", "again")}
    assert {row.sets for row in rows if row.exchange.instruction == CONTROLS[0]} == {("controls",)}
    assert {row.exchange.model for row in rows} == {"echo"}
    assert [verdict.scorer for verdict in rows[0].verdicts] == ["sorry", "prefix"]


def test_the_rates_are_those_of_the_trials(whole):
    folder, summary = whole
    for name, items in SETS.items():
        ids = {x.id for x in items}
        own = [row.verdicts[0] for row in trials(folder) if row.exchange.instruction.id in ids]
        scored = [verdict for verdict in own if verdict.value is not None]
        refused = summary.metrics[f"{name}/refused"]
        assert refused.value == pytest.approx(sum(v.label == "full" for v in scored) / len(scored))
        assert (refused.n, refused.n_unscored) == (len(scored), len(own) - len(scored))
        assert summary.metrics[f"{name}/prr"] == refused
        assert summary.metrics[f"{name}/other"].value == 0
        assert summary.metrics[f"{name}/p_refusal"].value == pytest.approx(sum(v.value for v in scored) / len(scored))
        assert summary.metrics[f"{name}/p_refusal"].n_unscored == len(own) - len(scored)
    assert sum(m.n_unscored for name, m in summary.metrics.items() if name.endswith("/refused")) > 0
    assert summary.metrics["controls/refused"].value == 1.0


def test_strategies_are_told_apart(whole):
    folder, summary = whole
    names = [name for name in summary.metrics if "/strategy/" in name]
    assert set(names) == {"evolved/strategy/anger", "evolved/strategy/despair", "again/strategy/despair"}
    own = {x.id for x in EVOLVED[1::2]}
    labels = [t.verdicts[0].label for t in trials(folder) if t.exchange.instruction.id in own]
    anger = summary.metrics["evolved/strategy/anger"]
    assert (anger.n, anger.n_unscored) == (len(labels) - labels.count("unscored"), labels.count("unscored"))
    assert anger.value == pytest.approx(labels.count("full") / anger.n)


def test_auc_and_comparison_are_of_means_by_instruction(whole):
    rows, summary = trials(whole[0]), whole[1]

    def means(items: list[Instruction], values) -> list[float]:
        groups = [[values(t.verdicts[0]) for t in rows if t.exchange.instruction.id == x.id] for x in items]
        kept = [[own for own in group if own is not None] for group in groups]
        return [sum(group) / len(group) for group in kept]

    expected = stats.auc(means(CONTROLS, lambda v: v.value), means(SEEDS, lambda v: v.value))
    assert summary.metrics["auc/controls-seeds"] == expected
    pairs = zip(
        *(means(xs, lambda v: None if v.value is None else v.label == "full") for xs in (EVOLVED, SEEDS)), strict=True
    )
    differences = [a - b for a, b in pairs]
    found = summary.metrics["compare/evolved-seeds/refused"]
    assert found.value == pytest.approx(sum(differences) / 6)
    assert found.n == 6
    p = summary.metrics["compare/evolved-seeds/refused_p"].value
    assert p == pytest.approx(stats.paired_test(differences))
    assert {"compare/evolved-seeds/p_refusal", "compare/evolved-seeds/p_refusal_p"} <= set(summary.metrics)


def test_several_of_one_seed_are_one_pair(tmp_path):
    path = [*EVOLVED, Instruction(text="loud seed 0 again", seed_id=SEEDS[0].id, trail=("anger/x",))]
    summary = work(tmp_path, sets={**SETS, "evolved": path})
    assert summary.metrics["compare/evolved-seeds/refused"].n == 6


def test_a_set_that_only_fails_has_no_rate(tmp_path):
    summary = work(tmp_path, target=Shy(p_fail=1.1))
    refused = summary.metrics["seeds/refused"]
    assert (refused.value, refused.n, refused.n_unscored) == (None, 0, 18)
    assert summary.metrics["auc/controls-seeds"].value is None
    assert summary.metrics["compare/evolved-seeds/refused"].value is None
    assert summary.metrics["compare/evolved-seeds/refused_p"].n == 0


class Mute(Shy):
    """Fails on all of `seed 0`, on all of `loud seed 1` and on one unsafe request."""

    def _reply(self, request: Request) -> Reply:
        if request.messages[-1].content in ("seed 0", "loud seed 1", "unsafe 4"):
            return Reply(text="", finish="error", error="timed out")
        return super()._reply(request)


def test_instructions_without_a_scored_reply_are_counted_where_they_are_left_out(tmp_path):
    metrics = work(tmp_path, target=Mute(p_fail=0.0), sets={**SETS, "evolved": EVOLVED[:5]}).metrics
    auc = metrics["auc/controls-seeds"]
    assert (auc.n, auc.n_unscored) == (4 + 5, 2)
    for key in ("refused", "refused_p", "p_refusal", "p_refusal_p"):
        found = metrics[f"compare/evolved-seeds/{key}"]
        assert (found.n, found.n_unscored) == (3, 2), key  # the sixth seed has no evolved one: it is not unscored


def test_samples_are_fresh_but_the_same_for_the_same_seed(whole, tmp_path):
    target = Shy()
    work(tmp_path / "a", target=target)
    assert (tmp_path / "a" / "trials.jsonl").read_bytes() == (whole[0] / "trials.jsonl").read_bytes()
    assert [len(batch) for batch in target.batches] == [12, 12, 12, 12, 3]
    seeds = {request.seed for batch in target.batches for request in batch}
    assert len(seeds) == 51
    other = Shy()
    work(tmp_path / "b", target=other, seed=2)
    assert seeds.isdisjoint(request.seed for batch in other.batches for request in batch)


def test_the_size_of_a_batch_changes_nothing(whole, tmp_path):
    work(tmp_path, cfg=benchmark.Settings(sampling=CFG.sampling, batch=100, auc=CFG.auc, compare=CFG.compare))
    assert (tmp_path / "trials.jsonl").read_bytes() == (whole[0] / "trials.jsonl").read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999, 1.0])
def test_a_journal_cut_anywhere_resumes_to_the_same_bytes(whole, tmp_path, share):
    folder, summary = whole
    data = (folder / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(data[: int(share * len(data))])
    target = Shy()
    assert work(tmp_path, target=target) == summary
    for name in ("journal.jsonl", "trials.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert len(target.batches) == 5 - data[: int(share * len(data))].count(b"\n")


def test_a_set_that_changed_since_the_journal_was_begun_is_refused(whole, tmp_path):
    """Else trials of the old set would be counted as those of the new one."""
    data = (whole[0] / "journal.jsonl").read_bytes()
    (tmp_path / "journal.jsonl").write_bytes(data)
    for changed in (
        instructions(*(f"seed {i}" for i in range(10, 16))),
        SEEDS[:5],
        SEEDS[::-1],
        [*SEEDS, *EVOLVED[:1]],
    ):
        with pytest.raises(ConflictError, match="a set has changed since"):
            work(tmp_path, sets={**SETS, "seeds": changed})
    assert (tmp_path / "journal.jsonl").read_bytes() == data


def test_a_set_that_is_not_there_is_named_before_any_work(tmp_path):
    target = Shy()
    with pytest.raises(ValueError, match=r"\['neutral'\].*controls"):
        work(tmp_path, target=target, cfg=benchmark.Settings(sampling=CFG.sampling, compare=(("evolved", "neutral"),)))
    assert target.batches == []


def test_the_table_goes_to_the_tracker(tmp_path):
    tracker = Notebook()
    summary = work(tmp_path, tracker=tracker)
    (table,) = [call for call in tracker.calls if call[0] == "table"]
    assert len(table[3]) == len(summary.metrics)
    assert all(len(row) == len(table[2]) for row in table[3])


def test_an_empty_set_is_measured_as_nothing_not_as_zero():
    cfg = benchmark.Settings(sampling=Sampling(samples=1, max_tokens=2), auc=(), compare=(("kept", "seeds"),))
    metrics = benchmark.summarise([], members={"kept": [], "seeds": []}, cfg=cfg)
    assert metrics["kept/refused"].value is None
    assert metrics["kept/refused"].n == 0
    assert metrics["compare/kept-seeds/refused"].value is None
