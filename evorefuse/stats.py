"""Statistics, pure: rates with intervals, paired tests, agreement, calibration, ranking. No files, no clock.

Lexical diversity will stand here too, when the benchmark needs it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from evorefuse.records import Metric, derive

Array = NDArray[np.float64]
_Z = 1.959964  # of the normal distribution, for 95 %
_INFORMATIVE = 7.0  # so many groups with a hit (or a miss) begin to tell how alike repeats are


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a rate, both in [0, 1]; (0, 1) when nothing was counted.

    Raises:
        ValueError: unless 0 ≤ successes ≤ n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"expected 0 <= successes <= n, got successes={successes}, n={n}")
    if n == 0:
        return 0.0, 1.0
    interval = scipy_stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    return float(interval.low), float(interval.high)


def rate(outcomes: Sequence[bool | None]) -> Metric:
    """The share of true outcomes with its Wilson interval; None counts as unscored and is left out of the rate."""
    scored = [outcome for outcome in outcomes if outcome is not None]
    hits = sum(scored)
    low, high = wilson(hits, len(scored))
    return Metric(
        value=hits / len(scored) if scored else None,
        n=len(scored),
        n_unscored=len(outcomes) - len(scored),
        low=low,
        high=high,
    )


def bootstrap(
    groups: Sequence[Sequence[float]], *, statistic: Callable[[Array], float] | None = None, resamples: int = 2000
) -> tuple[float, float]:
    """A 95 % percentile interval of the mean over ``groups``, which are resampled whole (clustered bootstrap).

    Samples of one instruction are not independent: give one group an instruction. ``statistic`` maps the pooled
    values of a resample to a number (default: their mean). (nan, nan) without values.
    """
    filled = [np.asarray(group, dtype=float) for group in groups if len(group)]
    if not filled:
        return float("nan"), float("nan")
    rng = np.random.default_rng(derive("bootstrap", len(filled), resamples))
    picks = rng.integers(0, len(filled), size=(resamples, len(filled)))
    if statistic is None:
        sums = np.array([group.sum() for group in filled])
        counts = np.array([len(group) for group in filled])
        values = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    else:
        values = np.array([statistic(np.concatenate([filled[i] for i in row])) for row in picks])
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def clustered_rate(groups: Sequence[Sequence[bool | None]]) -> Metric:
    """The rate over all outcomes with a Wilson interval at the effective sample size of clustered data.

    ``groups`` holds one sequence of repeats an instruction. The design effect (Kish) is the ratio of the variance
    between groups to the binomial one, at least 1, so k repeats of one prompt never count as k independent prompts.
    Where few groups hold a hit (or few a miss) that ratio is mostly luck, so it is drawn towards the largest there is,
    that of repeats which all agree, with a weight of exp(-(groups / 7)²): 1 at none, 0.6 at five, 0.02 at fourteen.
    With 20 prompts of 8 answers at a mean rate of 5 to 11 % the intervals then cover 95 to 98 % (without: 81 to 90 %).
    """
    kept = [[float(outcome) for outcome in group if outcome is not None] for group in groups]
    filled = [group for group in kept if group]
    n = sum(len(group) for group in filled)
    unscored = sum(len(group) for group in groups) - n
    if not n:
        return Metric(value=None, n=0, n_unscored=unscored, low=0.0, high=1.0)
    p = sum(map(sum, filled)) / n
    effective = _effective_size(filled, p=p, n=n)
    scale = _Z * _Z / effective
    centre = (p + scale / 2) / (1 + scale)
    half = _Z * np.sqrt(p * (1 - p) / effective + scale / (4 * effective)) / (1 + scale)
    low, high = (round(float(bound), 12) for bound in (centre - half, centre + half))  # 0 and 1 to the digit
    return Metric(value=p, n=n, n_unscored=unscored, low=max(0.0, low), high=min(1.0, high))


def _effective_size(groups: Sequence[Sequence[float]], *, p: float, n: int) -> float:
    clusters = len(groups)
    if p in (0.0, 1.0) or clusters < 2:
        return float(clusters)
    residuals = np.array([sum(group) - p * len(group) for group in groups])
    variance = clusters / (clusters - 1) * float((residuals**2).sum()) / n**2
    estimated = max(1.0, n * variance / (p * (1 - p)))
    informative = min(sum(any(group) for group in groups), sum(not all(group) for group in groups))
    weight = float(np.exp(-((informative / _INFORMATIVE) ** 2)))
    return n / max(estimated, (1 - weight) * estimated + weight * n / clusters)


def mean(groups: Sequence[Sequence[float]], *, n_unscored: int = 0) -> Metric:
    """The mean over all values with a clustered bootstrap interval (one group an instruction)."""
    values = [value for group in groups for value in group]
    if not values:
        return Metric(value=None, n=0, n_unscored=n_unscored)
    low, high = bootstrap(groups)
    return Metric(value=float(np.mean(values)), n=len(values), n_unscored=n_unscored, low=low, high=high)


def paired_test(differences: Sequence[float], *, resamples: int = 20_000) -> float:
    """The two-sided p-value of a sign-flip permutation test that paired differences have mean 0.

    Exact by enumeration up to 14 pairs, else Monte-Carlo with ``resamples`` flips; 1.0 without any difference.
    """
    values = np.asarray(differences, dtype=float)
    if values.size == 0 or not np.any(values):
        return 1.0
    observed = abs(values.mean())
    if values.size <= 14:
        bits = (np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1
        means = np.abs(((2 * bits - 1) * values).mean(axis=1))
        return float((means >= observed - 1e-12).mean())
    signs = np.random.default_rng(derive("paired", values.size)).choice([-1.0, 1.0], size=(resamples, values.size))
    return float((1 + (np.abs((signs * values).mean(axis=1)) >= observed - 1e-12).sum()) / (1 + resamples))


def auc(positives: ArrayLike, negatives: ArrayLike, *, n_unscored: int = 0) -> Metric:
    """The area under the ROC curve (chance .5): P(a positive scores above a negative), ties half.

    The interval is Newcombe's score interval (2006, method 5): all areas θ that lie within 1.96 √V(θ) of the one found,
    V being Hanley and McNeil's variance. Unlike DeLong's it has a width where the two sides are wholly apart
    ([0.925, 1] of 40 and 20), and covers near there. ``n`` counts positives plus negatives; the value is None where
    either side is empty.
    """
    pos, neg = np.asarray(positives, dtype=float), np.asarray(negatives, dtype=float)
    n = int(pos.size + neg.size)
    if not pos.size or not neg.size:
        return Metric(value=None, n=n, n_unscored=n_unscored)
    area = float(((pos[:, None] > neg[None, :]) + 0.5 * (pos[:, None] == neg[None, :])).mean())
    low, high = (_least_area(value, pos.size, neg.size) for value in (area, 1 - area))
    return Metric(value=area, n=n, n_unscored=n_unscored, low=low, high=1 - high)


def _least_area(area: float, first: int, second: int) -> float:
    """The lowest area under the curve that ``area`` does not rule out, by bisection."""
    low, high = 0.0, area
    for _ in range(60):
        middle = (low + high) / 2
        spread = 1 + ((first + second) / 2 - 1) * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        if (area - middle) ** 2 > _Z * _Z * middle * (1 - middle) * spread / (first * second):
            low = middle
        else:
            high = middle
    return low


def spearman(x: ArrayLike, y: ArrayLike) -> Metric:
    """Spearman's rank correlation in [-1, 1] with a bootstrap interval over pairs; None below three pairs."""
    first, second = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if first.size < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Metric(value=None, n=int(first.size))
    rng = np.random.default_rng(derive("spearman", first.size))
    picks = rng.integers(0, first.size, size=(1000, first.size))
    draws = [_rank_correlation(first[row], second[row]) for row in picks if np.ptp(first[row]) and np.ptp(second[row])]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Metric(value=_rank_correlation(first, second), n=int(first.size), low=float(low), high=float(high))


def _rank_correlation(x: Array, y: Array) -> float:
    return float(np.corrcoef(scipy_stats.rankdata(x), scipy_stats.rankdata(y))[0, 1])


def kappa(first: Sequence[object], second: Sequence[object]) -> float:
    """Cohen's κ of two labellings: agreement beyond chance, 1 at best; 1.0 where both always give one same label.

    Raises:
        ValueError: where the lengths differ or nothing is labelled.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"expected two labellings of one length, got {len(first)} and {len(second)}")
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    labels = set(first) | set(second)
    chance = sum((list(first).count(label) / n) * (list(second).count(label) / n) for label in labels)
    return 1.0 if chance == 1.0 else (observed - chance) / (1 - chance)


def ece(probabilities: ArrayLike, outcomes: ArrayLike, *, bins: int = 10) -> float:
    """The expected calibration error in [0, 1] over ``bins`` bins of equal width (0 is perfectly calibrated)."""
    p, y = np.asarray(probabilities, dtype=float), np.asarray(outcomes, dtype=float)
    if not p.size:
        return float("nan")
    index = np.clip((p * bins).astype(int), 0, bins - 1)
    members = [index == b for b in range(bins) if np.any(index == b)]
    gaps = (abs(p[member].mean() - y[member].mean()) * member.mean() for member in members)
    return float(sum(gaps))
