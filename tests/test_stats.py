"""Statistics against scikit-learn, scipy, closed forms and plain enumeration."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from evorefuse import stats
from evorefuse.records import Metric


def closed_wilson(hits: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    p = hits / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)]
)
def test_wilson_is_newcombes(hits, n, low, high):
    assert stats.wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_is_the_closed_form(n, share):
    assert stats.wilson(round(share * n), n) == pytest.approx(closed_wilson(round(share * n), n), abs=1e-6)


def test_wilson_of_nothing_is_everything_and_nonsense_is_refused():
    assert stats.wilson(0, 0) == (0.0, 1.0)
    for hits, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match=f"successes={hits}"):
            stats.wilson(hits, n)


def test_unscored_is_left_out_of_a_rate_and_counted():
    found = stats.rate([True, None, False, True, None])
    assert (found.value, found.n, found.n_unscored) == (2 / 3, 3, 2)
    assert (found.low, found.high) == stats.wilson(2, 3)
    assert stats.rate([None]).value is None


@given(st.lists(st.booleans(), min_size=2, max_size=60).filter(lambda xs: any(xs) and not all(xs)))
def test_a_clustered_rate_of_single_samples_is_at_most_a_hair_wider_than_wilson(outcomes):
    found = stats.clustered_rate([[outcome] for outcome in outcomes])
    n, hits = len(outcomes), sum(outcomes)
    p = hits / n
    assert found.value == pytest.approx(p)
    # The between-group variance has n - 1 in its denominator: the effective size is n - 1.
    assert (found.low, found.high) == pytest.approx(closed_wilson(p * (n - 1), n - 1), abs=1e-5)


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(2, 8))
def test_repeats_that_all_agree_add_nothing(outcomes, k):
    single = stats.clustered_rate([[outcome] for outcome in outcomes])
    repeated = stats.clustered_rate([[outcome] * k for outcome in outcomes])
    assert repeated.n == k * single.n
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high), abs=1e-9)
    naive = stats.wilson(k * sum(outcomes), k * len(outcomes))
    assert repeated.low is not None
    assert repeated.high is not None
    assert repeated.high - repeated.low > naive[1] - naive[0]


def test_repeats_that_differ_as_independent_ones_do_count_each():
    groups = [[True, False]] * 50
    assert stats.clustered_rate(groups).low == pytest.approx(stats.wilson(50, 100)[0], abs=1e-6)


def test_the_clustered_interval_covers_where_the_naive_one_does_not():
    rng = random.Random(4)
    covered = naive_covered = 0
    for _ in range(400):
        rates = [rng.betavariate(0.4, 0.6) for _ in range(40)]
        groups = [[rng.random() < p for _ in range(8)] for p in rates]
        found = stats.clustered_rate(groups)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.4 <= found.high
        naive = stats.wilson(sum(map(sum, groups)), 320)
        naive_covered += naive[0] <= 0.4 <= naive[1]
    assert covered / 400 > 0.92
    assert naive_covered / 400 < 0.75


def beta(rng, mean, alike):
    """Twenty prompts' rates of this mean; ``alike`` is the correlation of two answers to one prompt."""
    total = (1 - alike) / alike
    return rng.beta(mean * total, (1 - mean) * total, 20)


@pytest.mark.parametrize(
    ("mean", "draw"),
    [
        (0.05, lambda rng: beta(rng, 0.05, 0.5)),
        (0.1045, lambda rng: np.where(rng.random(20) < 0.1, 1.0, 0.005)),
        (0.0812, lambda rng: np.where(rng.random(20) < 0.08, 0.9, 0.01)),
        (0.95, lambda rng: beta(rng, 0.95, 0.5)),
        (0.2, lambda rng: beta(rng, 0.2, 0.5)),
        (0.5, lambda rng: beta(rng, 0.5, 0.5)),
    ],
)
def test_the_clustered_interval_covers_low_rates_too(mean, draw):
    rng = np.random.default_rng(7)
    intervals = [stats.clustered_rate((rng.random((20, 8)) < draw(rng)[:, None]).tolist()) for _ in range(1000)]
    assert 0.93 < sum(x.low <= mean <= x.high for x in intervals) / 1000 < 0.99


def test_an_isolated_hit_does_not_shrink_the_clustered_interval():
    uppers, lowers = [], []
    for hits in range(6):
        groups = [[i < hits, *[False] * 7] for i in range(20)]
        found = stats.clustered_rate(groups)
        mirrored = stats.clustered_rate([[not outcome for outcome in group] for group in groups])
        assert (mirrored.low, mirrored.high) == pytest.approx((1 - found.high, 1 - found.low))
        uppers.append(found.high)
        lowers.append(found.low)
    assert lowers == sorted(lowers)
    assert lowers[0] == 0
    assert uppers[0] == pytest.approx(closed_wilson(0, 20)[1])
    assert all(after > 0.95 * before for before, after in itertools.pairwise(uppers))
    assert max(uppers) / min(uppers) < 1.1


def test_the_clustered_interval_at_mid_rates_is_kishs():
    rng = np.random.default_rng(8)
    for _ in range(50):
        groups = rng.random((40, 8)) < rng.beta(0.8, 1.2, 40)[:, None]
        p = groups.mean()
        effective = p * (1 - p) / (groups.mean(axis=1).var(ddof=1) / 40)
        found = stats.clustered_rate(groups.tolist())
        assert (found.low, found.high) == pytest.approx(closed_wilson(p * effective, effective), abs=1e-3)


def test_a_clustered_rate_without_scores_says_nothing():
    found = stats.clustered_rate([[None, None], []])
    assert (found.value, found.n, found.n_unscored, found.low, found.high) == (None, 0, 2, 0.0, 1.0)
    assert stats.clustered_rate([[True, None], [False]]).n_unscored == 1


def test_the_bootstrap_resamples_whole_groups():
    rng = random.Random(1)
    values = [rng.gauss(0, 1) for _ in range(60)]
    low, high = stats.bootstrap([[value] for value in values])
    half = 1.96 * np.std(values) / math.sqrt(60)
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.06)
    assert stats.bootstrap([[value] * 9 for value in values]) == pytest.approx((low, high))
    assert stats.bootstrap([[value] for value in values]) == (low, high)
    median = stats.bootstrap([[value] for value in values], statistic=lambda pooled: float(np.median(pooled)))
    assert median[0] < np.median(values) < median[1]
    assert all(math.isnan(bound) for bound in stats.bootstrap([[], []]))


def test_a_mean_pools_its_groups():
    found = stats.mean([[1.0, 2.0], [6.0]], n_unscored=4)
    assert (found.value, found.n, found.n_unscored) == (3.0, 3, 4)
    assert stats.mean([[]], n_unscored=2).value is None


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
@settings(deadline=None)
def test_the_paired_test_is_the_enumeration_of_all_signs(differences):
    observed = abs(sum(differences))
    flips = itertools.product((1, -1), repeat=len(differences))
    extreme = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= observed for signs in flips]
    assert stats.paired_test(differences) == pytest.approx(sum(extreme) / len(extreme))


def test_the_paired_test_of_many_pairs_nears_scipys_and_is_never_zero():
    rng = random.Random(3)
    values = [rng.gauss(0.5, 1) for _ in range(40)]
    expected = scipy_stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1)
    ).pvalue
    assert stats.paired_test(values) == pytest.approx(expected, abs=0.01)
    assert 0 < stats.paired_test([1.0] * 40) < 1e-4
    assert stats.paired_test([]) == stats.paired_test([0.0, 0.0]) == 1.0


scores = st.lists(st.integers(0, 6), min_size=1, max_size=30)


@given(scores, scores)
@settings(deadline=None)
def test_auc_is_scikit_learns(positives, negatives):
    found = stats.auc(positives, negatives)
    labels = [1] * len(positives) + [0] * len(negatives)
    assert found.value == pytest.approx(roc_auc_score(labels, positives + negatives))
    assert found.n == len(labels)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("area", [0.6, 0.8, 0.95, 0.99, 0.998])
def test_aucs_interval_covers_the_area_of_two_normal_distributions(area):
    """DeLong's covers 0.93, 0.87, 0.72 and 0.46 of the last four."""
    rng = np.random.default_rng(2)
    apart = math.sqrt(2) * scipy_stats.norm.ppf(area)
    found = [stats.auc(rng.normal(apart, 1, 40), rng.normal(0, 1, 20)) for _ in range(500)]
    assert sum(x.low <= area <= x.high for x in found) / 500 > 0.93


def test_aucs_interval_has_a_width_where_the_sides_are_wholly_apart():
    found, mirrored = stats.auc([2.0] * 40, [1.0] * 20), stats.auc([1.0] * 40, [2.0] * 20)
    assert found.value == found.high == 1
    assert (mirrored.low, mirrored.high) == pytest.approx((0, 1 - found.low))
    # At area 1 the score equation is 1 - t = z² t (1 + 29 (1 - t)/(2 - t) + 29 t/(1 + t)) / 800.
    t, z = found.low, 1.959964
    assert 1 - t == pytest.approx(z * z * t * (1 + 29 * (1 - t) / (2 - t) + 29 * t / (1 + t)) / 800)
    assert t == pytest.approx(0.9247, abs=1e-4)
    # Of one and one it is Wilson's of 1 in 1, and more of either side tell more.
    assert stats.auc([2.0], [1.0]).low == pytest.approx(closed_wilson(1, 1)[0])
    lows = [stats.auc([2.0] * n, [1.0] * n).low for n in (1, 5, 20, 100)]
    assert lows == sorted(lows)


def test_aucs_interval_keeps_near_delongs_at_mid_areas():
    rng = random.Random(2)
    pos, neg = [rng.gauss(1, 1) for _ in range(700)], [rng.gauss(0, 1) for _ in range(500)]
    above_of = [sum(p > n for n in neg) / 500 for p in pos]
    below_of = [sum(p > n for p in pos) / 700 for n in neg]
    half = 1.96 * math.sqrt(np.var(above_of, ddof=1) / 700 + np.var(below_of, ddof=1) / 500)
    found = stats.auc(pos, neg, n_unscored=3)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.004)
    assert (found.n, found.n_unscored) == (1200, 3)
    assert stats.auc([], [1.0], n_unscored=2) == Metric(value=None, n=1, n_unscored=2)


def test_spearman_is_scipys():
    rng = random.Random(5)
    x = [rng.randint(0, 9) for _ in range(60)]
    y = [own + rng.gauss(0, 4) for own in x]
    found = stats.spearman(x, y)
    assert found.value == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert found.low is not None
    assert found.high is not None
    assert found.value is not None
    assert found.low < found.value < found.high
    assert stats.spearman([1, 2], [1, 2]).value is stats.spearman([1, 1, 1], [1, 2, 3]).value is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2, max_size=40))
@settings(deadline=None)
def test_kappa_is_scikit_learns(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    if len({*first, *second}) == 1:
        assert stats.kappa(first, second) == 1.0
    else:
        assert stats.kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))


def test_kappa_refuses_what_cannot_be_compared():
    for first, second in ((["a"], []), ([], [])):
        with pytest.raises(ValueError, match="one length"):
            stats.kappa(first, second)


def test_the_calibration_error_by_hand():
    assert stats.ece([0.05, 0.05, 0.95, 1.0], [0, 1, 1, 1]) == pytest.approx(0.5 * 0.45 + 0.5 * 0.025)
    assert stats.ece([0.25] * 4, [1, 0, 0, 0]) == pytest.approx(0.0)
    assert stats.ece([0.9] * 4, [0, 0, 0, 0]) == pytest.approx(0.9)
    assert stats.ece([0.1, 0.9], [0, 1], bins=1) == pytest.approx(0.0)
    assert math.isnan(stats.ece([], []))
