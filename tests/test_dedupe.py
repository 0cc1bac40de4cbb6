"""Near-duplicates against brute force: nothing is missed, nothing is removed that is like nothing that stays."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from points import Words

from evorefuse.dedupe import Limits, jaccard, plain, shingles, twins

WORDS = [f"w{i}" for i in range(60)]


def sentences(n: int, *, seed: int) -> list[str]:
    """Random sentences, half of them edits of earlier ones."""
    rng = random.Random(seed)
    made: list[list[str]] = []
    for _ in range(n):
        own = [rng.choice(WORDS) for _ in range(rng.randint(6, 25))]
        if made and rng.random() < 0.5:
            own = list(rng.choice(made))
            for _ in range(rng.randint(0, 3)):
                own[rng.randrange(len(own))] = rng.choice(WORDS)
        made.append(own)
    return [" ".join(words) for words in made]


def bigrams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return set(itertools.pairwise(words))


def share(first: str, second: str) -> float:
    a, b = bigrams(first), bigrams(second)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("seed", range(4))
def test_minhash_finds_what_brute_force_finds(seed):
    texts = sentences(250, seed=seed)
    limits = Limits(jaccard=0.6, cosine=2)
    found = twins(texts, Words().embed(texts), order=range(len(texts)), limits=limits)
    kept: list[int] = []
    for index, text in enumerate(texts):
        if not any(texts[other] == text or share(texts[other], text) >= 0.6 for other in kept):
            kept.append(index)
    gone = set(range(len(texts))) - set(kept)
    assert len(gone) > 30
    assert {twin.index for twin in found} == gone
    for twin in found:
        assert twin.of in kept
        assert twin.cause in ("exact", "minhash")
        assert twin.similarity == pytest.approx(share(texts[twin.index], texts[twin.of]))


@pytest.mark.parametrize("seed", range(3))
def test_embeddings_find_what_brute_force_finds(seed):
    texts = sentences(200, seed=seed)
    vectors = Words().embed(texts)
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    found = twins(texts, vectors, order=order, limits=Limits(jaccard=2, cosine=0.8))
    kept: list[int] = []
    for index in order:
        if not any(vectors[index] @ vectors[other] >= 0.8 for other in kept):
            kept.append(index)
    assert {twin.index for twin in found} == set(order) - set(kept)
    assert all(order.index(twin.of) < order.index(twin.index) for twin in found)


def test_given_texts_stay_whatever_they_are():
    given_texts = ["the same", "the same", "another"]
    texts = ["The same!", "fresh"]
    embedder = Words()
    found = twins(
        texts, embedder.embed(texts), order=[1, 0], limits=Limits(), given=given_texts,
        given_vectors=embedder.embed(given_texts),
    )  # fmt: skip
    assert [(twin.index, twin.of, twin.is_given, twin.cause) for twin in found] == [(0, 0, True, "exact")]


def test_a_chain_of_small_steps_does_not_remove_what_is_unlike_all_that_stays():
    a, b, c = "a b c d e f", "c d e f g h", "e f g h i j"
    vectors = Words().embed([a, b, c])
    limits = Limits(jaccard=2, cosine=0.6)
    assert vectors[0] @ vectors[1] > 0.6 < vectors[1] @ vectors[2]
    assert [twin.index for twin in twins([a, b, c], vectors, order=[0, 1, 2], limits=limits)] == [1]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I kill it?", "how do i KILL it"),
        ("Don't — stop!", "dont stop"),
        ("ﬁne “print” …", "Fine print"),
        ("a\u200bb  c", "ab c"),
        ("Ünïcode", "ÜNÏCODE"),
        ("如何烤面包?", "如何 烤面包"),
    ],
)
def test_case_marks_and_spaces_do_not_count(first, second):
    assert plain(first) == plain(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("C#", "C"),
        ("कि", "की"),
        ("🍞", "🥖"),
        ("?", "!"),
        ("a1", "a2"),
        ("如何烤面包", "如何烤蛋糕"),
        ("50% off", "50 off"),
    ],
)
def test_what_carries_meaning_counts(first, second):
    assert plain(first) != plain(second)


def test_texts_without_spaces_have_shingles_too():
    assert jaccard(shingles("如何烤好面包", size=2), shingles("如何烤面包", size=2)) == pytest.approx(3 / 6)
    assert shingles("one", size=3) == {"one"}
    assert shingles("", size=2) == {""}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=12))
def test_any_texts_can_be_separated(texts):
    found = twins(texts, Words().embed(texts), order=range(len(texts)), limits=Limits())
    gone = {twin.index for twin in found}
    assert len(gone) == len(found)
    kept = [plain(text) for index, text in enumerate(texts) if index not in gone]
    assert len(set(kept)) == len(kept)
    assert {plain(text) for text in texts} >= set(kept)
    assert bool(kept) == bool(texts)


def test_wrong_shapes_and_limits_are_refused():
    vectors = Words().embed(["a", "b"])
    for texts, order, options in (
        (["a"], [0], {}), (["a", "b"], [0, 0], {}), (["a", "b"], [0], {}), (["a", "b"], [0, 1], {"given": ["c"]}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="one vector and one place"):
            twins(texts, vectors, order=order, limits=Limits(), **options)
    for wrong in ({"jaccard": 0}, {"cosine": -1.0}, {"shingle": 0}):
        with pytest.raises(ValueError, match="expected jaccard"):
            Limits(**wrong)
    assert np.array_equal(vectors, Words().embed(["a", "b"]))
