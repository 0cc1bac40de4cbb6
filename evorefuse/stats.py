"""Statistics, pure: rates with intervals, paired tests, agreement, calibration, ranking. No files, no clock.

Lexical diversity will stand here too, when the benchmark needs it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from evorefuse.records import Metric, derive

Array = NDArray[np.float64]


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
    """
    kept = [[float(outcome) for outcome in group if outcome is not None] for group in groups]
    filled = [group for group in kept if group]
    n = sum(len(group) for group in filled)
    unscored = sum(len(group) for group in groups) - n
    if not n:
        return Metric(value=None, n=0, n_unscored=unscored, low=0.0, high=1.0)
    p = sum(map(sum, filled)) / n
    effective = _effective_size(filled, p=p, n=n)
    z = float(scipy_stats.norm.ppf(0.975))
    centre = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * np.sqrt(p * (1 - p) / effective + z * z / (4 * effective**2)) / (1 + z * z / effective)
    return Metric(
        value=p, n=n, n_unscored=unscored, low=max(0.0, float(centre - half)), high=min(1.0, float(centre + half))
    )


def _effective_size(groups: Sequence[Sequence[float]], *, p: float, n: int) -> float:
    clusters = len(groups)
    if p in (0.0, 1.0) or clusters < 2:
        return float(clusters)
    residuals = np.array([sum(group) - p * len(group) for group in groups])
    variance = clusters / (clusters - 1) * float((residuals**2).sum()) / n**2
    return float(n) if variance == 0 else min(float(n), p * (1 - p) / variance)


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


def auc(positives: ArrayLike, negatives: ArrayLike) -> Metric:
    """The area under the ROC curve (chance .5): P(a positive scores above a negative), ties half; interval by DeLong.

    ``n`` counts positives plus negatives; the value is None where either side is empty.
    """
    pos, neg = np.asarray(positives, dtype=float), np.asarray(negatives, dtype=float)
    if not pos.size or not neg.size:
        return Metric(value=None, n=int(pos.size + neg.size))
    wins = (pos[:, None] > neg[None, :]) + 0.5 * (pos[:, None] == neg[None, :])
    area = float(wins.mean())
    spread = sum(float(np.var(wins.mean(axis=1 - axis), ddof=1)) / size if size > 1 else 0.0
                 for axis, size in ((0, pos.size), (1, neg.size)))  # fmt: skip
    half = 1.959964 * float(np.sqrt(spread))
    return Metric(value=area, n=int(pos.size + neg.size), low=max(0.0, area - half), high=min(1.0, area + half))


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
