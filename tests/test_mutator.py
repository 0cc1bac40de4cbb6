"""The offline mutators: grammatical, deterministic, within their limits; the neutral arm matches the other."""

import itertools
import json
import random
import re
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evorefuse.mutator.neutral import Neutral
from evorefuse.mutator.patterns import DATA, RECOMBINE, Pattern
from evorefuse.mutator.rules import Rules
from evorefuse.mutator.strategies import STRATEGIES
from evorefuse.records import Instruction, Proposal

ARMS = [Rules, Neutral]
Arm = type[Rules] | type[Neutral]
SEEDS = [
    Instruction(text=json.loads(row)["instruction"])
    for row in (DATA / "seeds.jsonl").read_text(encoding="utf-8").splitlines()
]
ODD = {
    "emoji": "🍞🥖",
    "right to left": "كيف أخبز الخبز؟",
    "no end mark": "how do I bake bread",
    "lines": "Translate this:\n\n- one\n- two",
    "html": "<script>alert(1)</script>",
    "braces": "What does {a|b} mean?",
    "quoted": 'Explain the saying "Time flies."',
}


def read(arm: Arm) -> list[Pattern]:
    """The patterns of an arm."""
    name = "patterns_rules.jsonl" if arm is Rules else "patterns_neutral.jsonl"
    return [Pattern(**json.loads(row)) for row in (DATA / name).read_text(encoding="utf-8").splitlines()]


def made(proposals: list[Proposal]) -> list[Instruction]:
    """The instructions of the proposals that hold one."""
    return [proposal.instruction for proposal in proposals if proposal.instruction]


def evolved(arm: Arm, seed: Instruction, *, generations: int) -> list[Instruction]:
    """One lineage: in each generation two mutants are drawn and fused."""
    mutator, lineage = arm(), [seed]
    for t in range(generations):
        rng = random.Random(t)
        pair = rng.sample(made(mutator.mutate([lineage[-1]], seed=t)[0]), 2)
        child = mutator.recombine([(pair[0], pair[1])], seed=t)[0]
        assert child.instruction, child.error
        lineage += [pair[0], child.instruction]
    return lineage


def check_grammar(text: str) -> None:
    """Assert what a plain check can see of grammar."""
    assert "  " not in text
    assert "{" not in text
    assert "|" not in text
    assert re.search(r"[.!?]$", text), text
    assert text[0].isupper(), text
    assert not re.search(r"\ba [aeio]|\ban [^aeiouh\W]|\b(\w+) \1\b", text, re.IGNORECASE), text


@pytest.mark.parametrize("arm", ARMS)
def test_patterns_are_many_unique_and_well_formed(arm: Arm) -> None:
    patterns = read(arm)
    assert len({pattern.op for pattern in patterns}) == len(patterns)
    groups = {pattern.strategy for pattern in patterns}
    assert len(groups) == 10
    assert RECOMBINE in groups
    for group in groups:
        assert sum(pattern.strategy == group for pattern in patterns) >= 12
    filled = [sentence for pattern in patterns for sentence in pattern.sentences()]
    assert len(set(filled)) == len(filled)
    for pattern in patterns:
        assert pattern.reason.endswith(".")
        for sentence in pattern.sentences():
            assert sentence.endswith(":") if pattern.kind == "frame" else sentence[-1] in ".!"
            assert not re.search(r"[.!?:] ", sentence), f"{pattern.op} must be one sentence"
            check_grammar(sentence.rstrip(":") + "." if pattern.kind == "frame" else sentence)


@pytest.mark.parametrize("arm", ARMS)
def test_every_pattern_on_twenty_seeds(arm: Arm) -> None:
    mutator, uses = arm(), dict.fromkeys((p.op for p in read(arm) if p.strategy != RECOMBINE), 0)
    for seed in range(60):
        for child in made(list(itertools.chain(*mutator.mutate(SEEDS[:60], seed=seed)))):
            uses[child.op] += 1
            check_grammar(child.text)
    assert min(uses.values()) >= 20, uses


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("seed", SEEDS[::20], ids=lambda seed: seed.text)
def test_six_generations(arm: Arm, seed: Instruction) -> None:
    lineage = evolved(arm, seed, generations=6)
    texts = [child.text for child in lineage]
    assert len(set(texts)) == len(texts)
    for parent, child in zip(lineage[::2], lineage[2::2], strict=False):
        check_grammar(child.text)
        assert seed.text in child.text, "the seed stays whole"
        assert len(child.text.split()) <= 60
        assert len(set(child.trail)) == len(child.trail), "no pattern twice in a lineage"
        assert child.trail[: len(parent.trail)] == parent.trail
        assert child.trail[-1].startswith("recombine/")
        assert len(child.parents) == 2
        assert child.seed_id == seed.id
        assert child.reason


@pytest.mark.parametrize("arm", ARMS)
def test_proposals_keep_order_and_do_not_depend_on_the_batch(arm: Arm) -> None:
    mutator = arm()
    batch = [SEEDS[3], Instruction(text=" "), SEEDS[5], SEEDS[3]]
    together = mutator.mutate(batch, seed=7)
    assert [len(row) for row in together] == [9] * 4
    assert together == [mutator.mutate([item], seed=7)[0] for item in batch]
    assert together[0] == together[3] == arm().mutate([SEEDS[3]], seed=7)[0]
    assert together[0] != mutator.mutate([SEEDS[3]], seed=8)[0]
    assert all(proposal.error and proposal.instruction is None for proposal in together[1])
    pairs = list(itertools.pairwise(made(together[0])))
    assert mutator.recombine(pairs, seed=7) == [mutator.recombine([pair], seed=7)[0] for pair in pairs]
    assert mutator.mutate([], seed=0) == []
    assert mutator.recombine([], seed=0) == []


def test_fewer_strategies_change_nothing_for_the_others() -> None:
    some = Rules(strategies=["anger", "implied_harm"]).mutate(SEEDS[:9], seed=1)
    every = Rules().mutate(SEEDS[:9], seed=1)
    both = [STRATEGIES.index("anger"), STRATEGIES.index("implied_harm")]
    assert some == [[row[i] for i in both] for row in every]


@pytest.mark.parametrize("arm", ARMS)
def test_recombination_takes_from_both(arm: Arm) -> None:
    mutator = arm()
    first, second, *_ = made(mutator.mutate([SEEDS[0]], seed=0)[0])
    child = mutator.recombine([(first, second)], seed=0)[0].instruction
    assert child
    for parent in (first, second):
        assert parent.text.replace(SEEDS[0].text, "").strip() in child.text
    assert child.text not in (first.text, second.text)
    assert child.trail[:2] == (*first.trail, *second.trail)
    same, strangers = mutator.recombine([(first, first), (first, SEEDS[1])], seed=0)
    assert same.error
    assert "same text" in same.error
    assert strangers.error
    assert "different seeds" in strangers.error


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_texts_stay_whole(arm: Arm, text: str) -> None:
    mutator, parent = arm(), Instruction(text=text)
    children = made(mutator.mutate([parent], seed=0)[0])
    assert len(children) == 9
    assert all(text in child.text for child in children)
    fused = mutator.recombine(list(itertools.pairwise(children)), seed=0)
    assert all(text in child.text for child in made(fused))
    assert made(fused)


@pytest.mark.parametrize("arm", ARMS)
def test_long_texts_are_error_proposals(arm: Arm) -> None:
    mutator, long = arm(), Instruction(text="bread and butter " * 600)
    assert all("words" in (proposal.error or "") for proposal in mutator.mutate([long], seed=0)[0])
    assert len(made(mutator.mutate([Instruction(text="." * 10_000 + "x")], seed=0)[0])) == 9


@pytest.mark.parametrize("arm", ARMS)
@settings(deadline=None, max_examples=60)
@given(texts=st.tuples(st.text(max_size=300), st.text(max_size=300)))
def test_any_text_is_survived(arm: Arm, texts: tuple[str, str]) -> None:
    mutator = arm()
    parents = [Instruction(text=text) for text in texts]
    children = [made(row) for row in mutator.mutate(parents, seed=0)]
    for child in itertools.chain(*children):
        assert len(child.text.split()) <= 60
        assert child.text
    pairs = [(parents[0], parents[1]), *itertools.pairwise(children[0])]
    assert len(mutator.recombine(pairs, seed=0)) == len(pairs)


def test_a_used_up_strategy_is_an_error_proposal() -> None:
    used = tuple(pattern.op for pattern in read(Rules) if pattern.strategy == "anger")
    row = Rules().mutate([Instruction(text="Name a bird.", trail=used)], seed=0)[0]
    errors = {proposal.op: proposal.error for proposal in row if proposal.error}
    assert errors == {"anger": "every pattern of anger was used in this lineage"}


def test_neutral_matches_rules_in_length_and_form() -> None:
    def words(arm: Arm, *, recombine: bool) -> list[int]:
        chosen = [p for p in read(arm) if (p.strategy == RECOMBINE) == recombine]
        return [len(sentence.split()) for pattern in chosen for sentence in pattern.sentences()]

    for recombine in (False, True):
        rules, neutral = words(Rules, recombine=recombine), words(Neutral, recombine=recombine)
        assert abs(mean(rules) - mean(neutral)) <= 0.5, (mean(rules), mean(neutral))
        assert max(neutral) <= max(rules)
        assert min(neutral) <= min(rules) + 1
    for kind in ("before", "after", "frame"):
        share = [mean(p.kind == kind for p in read(arm)) for arm in ARMS]
        assert abs(share[0] - share[1]) <= 0.05
    grown = [mean(len(evolved(arm, seed, generations=3)[-1].text.split()) for seed in SEEDS[:40]) for arm in ARMS]
    assert abs(grown[0] - grown[1]) <= 2, grown


def test_neutral_has_no_loaded_word_and_rules_has_a_gradation() -> None:
    lexicon = json.loads((Path(DATA) / "lexicon.json").read_text(encoding="utf-8"))
    stems = "|".join(stem for group in lexicon.values() for stem in group).replace("*", r"\w*")
    loaded = re.compile(rf"\b(?:{stems})\b", re.IGNORECASE)
    for pattern in read(Neutral):
        assert not loaded.search(pattern.text), (pattern.op, loaded.findall(pattern.text))
        assert "!" not in pattern.text
    for strategy in STRATEGIES:
        counts = [len(loaded.findall(p.sentences()[0])) for p in read(Rules) if p.strategy == strategy]
        assert mean(counts) >= 1, (strategy, counts)
        assert max(counts) >= 3, (strategy, counts)
        assert min(counts) <= 1, (strategy, counts)


@pytest.mark.parametrize("arm", ARMS)
def test_broken_settings_say_what_was_expected(arm: Arm) -> None:
    with pytest.raises(ValueError, match=r"expected one or more of: \w+"):
        arm(strategies=["angre"])
    with pytest.raises(ValueError, match="expected one or more"):
        arm(strategies=[])
    with pytest.raises(ValueError, match="at least 1"):
        arm(max_words=0)
