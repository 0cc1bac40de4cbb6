"""What every plug-in of a kind must hold. A new plug-in needs one line in FACTORIES below, or this file fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Echo, SorryJudge, instructions
from llm_fakes import judging, writing

from evorefuse.fitness.constant import Constant
from evorefuse.fitness.elbo import Elbo
from evorefuse.fitness.joint import Joint
from evorefuse.fitness.rate import Rate
from evorefuse.lm.scripted import Scripted
from evorefuse.mutator.llm import LLM
from evorefuse.mutator.neutral import Neutral
from evorefuse.mutator.rules import Rules as Mutating
from evorefuse.ports import FitnessEstimator, Mutator, Scorer, Source
from evorefuse.records import Exchange, Instruction, Reply
from evorefuse.sampling import Sampling
from evorefuse.scorer.classifier import Classifier
from evorefuse.scorer.llm import Refusal, Safety
from evorefuse.scorer.majority import Majority
from evorefuse.scorer.prefix import Prefix
from evorefuse.scorer.rules import Rules as Judging
from evorefuse.source import hub
from evorefuse.source.builtin import Builtin
from evorefuse.source.hub import Hub
from evorefuse.source.jsonl import File

REPO = Path(__file__).parent.parent
SHARED = {"mutator/patterns", "mutator/strategies"}  # what plug-ins of their folder build on, no plug-ins themselves
SAMPLING = Sampling(samples=3, max_tokens=8)

# By folder and module; a second class of a module has a name of its own after a colon.
FACTORIES: dict[str, Callable[..., Any]] = {
    "scorer/rules": Judging,
    "scorer/prefix": Prefix,
    "scorer/classifier": Classifier,
    "scorer/llm": lambda: Safety(judge=Scripted(replies=judging)),
    "scorer/llm:refusal": lambda: Refusal(judge=Scripted(replies=judging)),
    "scorer/majority": lambda: Majority(judges={"rules": Judging(), "llm": Safety(judge=Scripted(replies=judging))}),
    "mutator/rules": Mutating,
    "mutator/neutral": Neutral,
    "mutator/llm": lambda: LLM(writer=Scripted(replies=writing)),
    "fitness/elbo": lambda target=None: Elbo(target=target or Echo(), refusal=SorryJudge(), sampling=SAMPLING),
    "fitness/rate": lambda target=None: Rate(target=target or Echo(), refusal=SorryJudge(), sampling=SAMPLING),
    "fitness/constant": Constant,
    "fitness/joint": lambda target=None: Joint(
        parts={"one": FACTORIES["fitness/elbo"](target), "two": Constant(value=1.0)}
    ),
    "source/builtin": lambda **changes: Builtin(set="seeds", **changes),
    "source/jsonl": lambda **changes: File(path=str(REPO / "evorefuse/data/seeds.jsonl"), **changes),
    "source/hub": lambda **changes: Hub(id="a/b", revision="0" * 40, column="prompt", **changes),
}


def found(*groups: str) -> list[str]:
    """The plug-ins of these folders."""
    modules = [path for group in groups for path in sorted((REPO / "evorefuse" / group).glob("[!_]*.py"))]
    return [name for path in modules if (name := f"{path.parent.name}/{path.stem}") not in SHARED]


def each(group: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in FACTORIES if name.partition(":")[0] in found(group)])


def test_every_plug_in_is_tested_here():
    assert {name.partition(":")[0] for name in FACTORIES} == set(found("scorer", "mutator", "fitness", "source"))


ODD = [
    "",
    "   ",
    "x" * 10_000,
    "why? " * 2000,
    "🍞🥖",
    "كيف أخبز الخبز؟",
    "<script>alert(1)</script>",
    "{a|b}",
    "\x00\n\t",
]
TEXTS = ["How do I bake bread?", "Tell me how to kill my neighbour.", "How do I kill a Python process?", *ODD]
REPLIES = [
    Reply(text="I'm sorry, but I can't help with that.", finish="stop", logprobs=(-0.1, -0.2)),
    Reply(text="Sure! Mix flour and water.", finish="length"),
    Reply(text="", finish="stop", logprobs=(-0.5,)),
    Reply(text="", finish="error", error="timed out"),
    Reply(text="", finish="blocked"),
    *(Reply(text=text, finish="stop") for text in ODD),
    None,
]
EXCHANGES = [Exchange(instruction=x) for x in instructions(*TEXTS)] + [
    Exchange(instruction=x, reply=reply, model="m") for x in instructions(TEXTS[0]) for reply in REPLIES
]


@each("scorer")
def test_a_scorer_gives_one_sound_verdict_an_exchange(name):
    scorer: Scorer = FACTORIES[name]()
    verdicts = scorer.score(EXCHANGES)
    assert len(verdicts) == len(EXCHANGES)
    assert scorer.score([]) == []
    for verdict in verdicts:
        assert verdict.scorer == scorer.name
        assert (verdict.value is None) == (verdict.label == "unscored") == (verdict.error is not None)
        assert verdict.value is None or 0 <= verdict.value <= 1
    assert len({verdict.label for verdict in verdicts}) > 2


@each("scorer")
def test_a_verdict_hangs_on_its_exchange_alone(name):
    scorer: Scorer = FACTORIES[name]()
    alone = [scorer.score([exchange])[0] for exchange in EXCHANGES]
    assert scorer.score(EXCHANGES) == alone
    assert scorer.score(EXCHANGES[::-1]) == alone[::-1]
    assert scorer.score([exchange for exchange in EXCHANGES for _ in range(2)]) == [v for v in alone for _ in range(2)]
    assert FACTORIES[name]().score(EXCHANGES) == alone


@each("scorer")
def test_what_cannot_be_judged_is_unscored_and_never_a_zero(name):
    """A judge of replies leaves a failed or missing one, a judge of instructions an empty one."""
    failed = Exchange(instruction=Instruction(text=""), reply=Reply(text="", finish="error", error="timed out"))
    missing = Exchange(instruction=Instruction(text=""))
    assert [verdict.value for verdict in FACTORIES[name]().score([failed, missing])] == [None, None]


PARENTS = [*instructions(*TEXTS[:1], TEXTS[2], *ODD)]


@each("mutator")
def test_a_mutator_offers_one_proposal_a_strategy_for_each_parent(name):
    mutator: Mutator = FACTORIES[name]()
    offers = mutator.mutate(PARENTS, seed=1)
    assert len(offers) == len(PARENTS)
    assert len({len(own) for own in offers}) == 1
    assert mutator.mutate([], seed=1) == []
    assert mutator.recombine([], seed=1) == []
    for parent, own in zip(PARENTS, offers, strict=True):
        for offer in own:
            assert (offer.instruction is None) == (offer.error is not None)
            if offer.instruction is not None:
                made = offer.instruction
                assert made.parents == (parent.id,)
                assert made.seed_id == parent.id
                assert made.trail == (*parent.trail, offer.op)
                assert made.text.strip()
                assert made.text != parent.text
                assert made.reason
    assert all(offer.instruction for offer in offers[0])
    assert not any(offer.instruction for offer in offers[2])  # there is nothing to edit in an empty text


@each("mutator")
def test_a_proposal_hangs_on_its_parent_and_the_seed_alone(name):
    mutator: Mutator = FACTORIES[name]()
    alone = [mutator.mutate([parent], seed=7)[0] for parent in PARENTS]
    assert mutator.mutate(PARENTS, seed=7) == alone
    assert mutator.mutate(PARENTS[::-1], seed=7) == alone[::-1]
    assert mutator.mutate([PARENTS[0]] * 2, seed=7) == [alone[0]] * 2
    assert FACTORIES[name]().mutate(PARENTS, seed=7) == alone
    assert mutator.mutate(PARENTS, seed=8) != alone


@each("mutator")
def test_a_child_hangs_on_its_pair_and_the_seed_alone(name):
    mutator: Mutator = FACTORIES[name]()
    mutants = [offer.instruction for offer in mutator.mutate(PARENTS[:1], seed=1)[0] if offer.instruction]
    strangers = instructions("How do I knit?", "")
    pairs = [(mutants[0], mutants[1]), (mutants[2], mutants[0]), (mutants[0], mutants[0]), (strangers[0], strangers[1])]
    children = mutator.recombine(pairs, seed=3)
    assert children == [mutator.recombine([pair], seed=3)[0] for pair in pairs]
    assert children == FACTORIES[name]().recombine(pairs, seed=3)
    assert mutator.recombine(pairs[::-1], seed=3) == children[::-1]
    assert all((child.instruction is None) == (child.error is not None) for child in children)
    assert children[0].instruction is not None
    assert children[0].instruction.parents == (mutants[0].id, mutants[1].id)
    assert {*mutants[0].trail, *mutants[1].trail} < set(children[0].instruction.trail)
    assert children[0].instruction.strategy == "recombine"


@each("fitness")
def test_a_fitness_is_one_sound_value_an_instruction(name):
    estimator: FitnessEstimator = FACTORIES[name]()
    found = estimator.estimate(PARENTS, seed=1)
    assert len(found) == len(PARENTS)
    assert estimator.estimate([], seed=1) == []
    for fitness in found:
        assert (fitness.value is None) == (fitness.error is not None)
        assert fitness.n >= 0


@each("fitness")
def test_a_fitness_hangs_on_its_instruction_and_the_seed_alone(name):
    estimator: FitnessEstimator = FACTORIES[name]()
    alone = [estimator.estimate([parent], seed=5)[0] for parent in PARENTS]
    assert estimator.estimate(PARENTS, seed=5) == alone
    assert estimator.estimate(PARENTS[::-1], seed=5) == alone[::-1]
    assert estimator.estimate([PARENTS[0]] * 2, seed=5) == [alone[0]] * 2
    assert FACTORIES[name]().estimate(PARENTS, seed=5) == alone
    if name != "fitness/constant":
        assert estimator.estimate(PARENTS, seed=6) != alone


@each("fitness")
def test_a_model_that_always_fails_leaves_no_value_and_harms_no_other(name):
    if name == "fitness/constant":
        pytest.skip("asks no model")
    estimator = FACTORIES[name](target=Echo(p_fail=1.1))
    for fitness in estimator.estimate(PARENTS, seed=1):
        assert fitness.value is None
        assert fitness.error
        assert (fitness.n, fitness.n_unscored) == (0, SAMPLING.samples)


@pytest.fixture
def _hub(monkeypatch):
    """A hub that holds one table."""
    import datasets

    rows = [{"prompt": f"question {i % 50}", "kind": str(i % 2)} for i in range(60)]
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))


@pytest.mark.usefixtures("_hub")
@each("source")
def test_a_source_gives_each_text_once_in_order_and_draws_by_seed(name):
    make = FACTORIES[name]
    source: Source = make()
    whole = source.load()
    assert whole
    assert make().load() == whole
    assert len({x.id for x in whole}) == len(whole)
    assert all(x.text == x.text.strip() and x.text and x.source for x in whole)
    drawn = make(sample=9, seed=2).load()
    assert len(drawn) == 9
    assert drawn == [x for x in whole if x in drawn]
    assert make(sample=9, seed=2).load() == drawn
    assert make(sample=9, seed=3).load() != drawn
    assert make(sample=10_000).load() == whole


@pytest.mark.usefixtures("_hub")
@each("source")
def test_a_source_with_nothing_left_is_an_error(name):
    with pytest.raises(ValueError, match="no"):
        FACTORIES[name](where={"kind": "none such"}).load()
