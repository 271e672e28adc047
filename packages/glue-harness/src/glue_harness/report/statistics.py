"""Is one setting better than another? Pure functions of paired scores; a pair shares its seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from finetune_common.errors import ConfigurationError, check_number, shown

__all__ = [
    "TESTS",
    "bootstrap_interval",
    "holm",
    "mean_interval",
    "pairs_needed",
    "probability_of_improvement",
    "sign_flip_test",
    "smallest_p",
    "wilcoxon_test",
]

EXACT_UP_TO = 16
"""Up to this many pairs every assignment of signs is tried: 2¹⁵, up to a common sign."""

DRAWS = 9_999

RESAMPLED_FROM = 10
"""From this many pairs an interval is bootstrapped: fewer show too little of the spread."""


def _finite(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ConfigurationError(f"{name}: give at least one finite number, not {shown(list(values))}")
    return array


@lru_cache(maxsize=8)
def _signs(pairs: int, seed: int) -> np.ndarray:
    """Return rows of ±1: all of them up to a common sign, or a sample if there are too many."""
    if pairs <= EXACT_UP_TO:
        bits = (np.arange(2 ** (pairs - 1))[:, None] >> np.arange(pairs)) & 1
        return 1.0 - 2.0 * bits
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(DRAWS, pairs))


def sign_flip_test(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired permutation test of "no difference".

    Under the null hypothesis a pair's difference is as likely to be d as −d, so that
    p = P(|Σ s_i d_i| ≥ |Σ d_i|) over signs s ∈ {−1, 1}ⁿ. Up to 16 pairs all signs are tried and the level is
    exact; above, 9,999 are drawn and p = (1 + hits)/(1 + 9,999), which keeps the level too.

    Args:
        differences: One a seed, any unit.
        seed: Of the drawn signs.

    Returns:
        A number in [2/2ⁿ, 1] up to 16 pairs.

    Raises:
        ConfigurationError: No differences, or some that are not finite.

    Source: Fisher, The Design of Experiments (1935), section 21.

    Examples:
        >>> sign_flip_test([0.01, 0.02, 0.03])
        0.25
        >>> sign_flip_test([1, 1, 1, 1, 1, 1])
        0.03125
    """
    values = _finite("differences", differences)
    rounding = 1e-9 * np.abs(values).sum()
    signs = _signs(len(values), seed)
    hits = int((np.abs(signs @ values) >= abs(values.sum()) - rounding).sum())
    return hits / len(signs) if len(values) <= EXACT_UP_TO else (1 + hits) / (1 + DRAWS)


def wilcoxon_test(differences: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test: the sign-flip test of signed ranks.

    Pairs without a difference are left out; equal sizes share their mean rank. Only the rank of a seed's
    difference counts, not its size, so that a crashed run decides less. Exact up to 16 pairs, also with ties.

    Args:
        differences: One a seed, any unit.
        seed: Of the drawn signs above 16 pairs.

    Raises:
        ConfigurationError: No differences, or some that are not finite.

    Source: Wilcoxon, Individual Comparisons by Ranking Methods (1945).

    Examples:
        >>> wilcoxon_test([0.01, 0.02, 0.04, -0.3])
        0.875
    """
    from scipy.stats import rankdata  # takes half a second

    values = _finite("differences", differences)
    values = values[values != 0]
    if not len(values):
        return 1.0
    return sign_flip_test(np.sign(values) * rankdata(np.abs(values)), seed)


TESTS = {"permutation": sign_flip_test, "wilcoxon": wilcoxon_test}
"""Name on the command line → the test."""


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the given order.

    p̃_(i) = max over j ≤ i of min(1, (m − j + 1) p_(j)), for the ordered p_(1) ≤ … ≤ p_(m). If every
    hypothesis with p̃ ≤ α is rejected, the probability of any false rejection is at most α, however they
    depend on each other.

    Args:
        p_values: Each in [0, 1].

    Raises:
        ConfigurationError: A value outside [0, 1].

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    for p in p_values:
        check_number("p", p, at_least=0, at_most=1)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


@lru_cache(maxsize=8)
def _resamples(pairs: int, seed: int) -> np.ndarray:
    """Return rows of weights: how often each pair is drawn, divided by the number of pairs."""
    drawn = np.random.default_rng(seed).integers(pairs, size=(DRAWS, pairs))
    return np.stack([(drawn == pair).sum(axis=1) for pair in range(pairs)], axis=1) / pairs


def bootstrap_interval(
    differences: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Return a bootstrap confidence interval of the mean difference, bias-corrected and accelerated (BCa).

    The quantiles of 9,999 resampled means at Φ(z₀ + (z₀ + z_α)/(1 − a (z₀ + z_α))), with z₀ from the share of
    resampled means below the mean and a from the skewness of the leave-one-out means. With fewer than about
    ten pairs the interval is too narrow, since resampling sees only the spread of the pairs; `mean_interval`
    chooses the right one.

    Args:
        differences: One a seed, any unit.
        level: Share of such intervals that hold the true mean, in (0, 1).
        seed: Of the resampling.

    Returns:
        The two ends in the unit of the differences; None for a single pair, which has no spread.

    Raises:
        ConfigurationError: No differences, some that are not finite, or a level outside (0, 1).

    Source: Efron, Better Bootstrap Confidence Intervals (1987), equations 2.3 and 6.6.

    Examples:
        >>> bootstrap_interval([0.5, 0.5, 0.5])
        (0.5, 0.5)
        >>> bootstrap_interval([0.5]) is None
        True
    """
    check_number("level", level, above=0, below=1)
    values = _finite("differences", differences)
    if len(values) < 2:
        return None
    mean = values.mean()
    left_out = mean - (values.sum() - values) / (len(values) - 1)
    spread = (left_out**2).sum()
    if spread <= (1e-12 * abs(mean)) ** 2:
        return float(mean), float(mean)
    means = _resamples(len(values), seed) @ values
    acceleration = (left_out**3).sum() / (6 * spread**1.5)
    bias = ndtri(((means < mean).mean() + (means <= mean).mean()) / 2)
    z = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(means, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def mean_interval(
    differences: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float] | None:
    """Return a confidence interval of the mean difference: Student's below ten pairs, else BCa.

    x̄ ± t s/√n, with t the (1 + level)/2 quantile of Student's distribution with n − 1 degrees of freedom. It
    assumes normal differences; with three pairs a 95 % BCa bootstrap holds the mean in only seven of ten
    cases.

    Args:
        differences: One a seed, any unit.
        level: Share of such intervals that hold the true mean, in (0, 1).

    Returns:
        The two ends in the unit of the differences; None for a single pair, which has no spread.

    Raises:
        ConfigurationError: No differences, some that are not finite, or a level outside (0, 1).

    Source: Student, The Probable Error of a Mean (1908); Efron (1987) from ten pairs on.

    Examples:
        >>> low, high = mean_interval([0.01, 0.02, 0.03])
        >>> round(low, 4), round(high, 4)
        (-0.0048, 0.0448)
    """
    check_number("level", level, above=0, below=1)
    values = _finite("differences", differences)
    if not 2 <= len(values) < RESAMPLED_FROM:
        return bootstrap_interval(values, level)
    half = stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the probability that our run beats theirs: P(X > Y) + P(X = Y)/2 over all pairs.

    Args:
        ours: Scores, one per seed, higher is better.
        theirs: The same for the other setting; the numbers of runs may differ.

    Raises:
        ConfigurationError: No scores, or some that are not finite.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (2021).

    Examples:
        >>> probability_of_improvement([0.9, 0.8], [0.7, 0.8])
        0.875
    """
    above = np.subtract.outer(_finite("ours", ours), _finite("theirs", theirs))
    return float((np.sign(above) + 1).mean() / 2)


def smallest_p(pairs: int) -> float:
    """Return the smallest p-value that an exact paired test can give: 2/2ⁿ.

    Examples:
        >>> smallest_p(3), smallest_p(6)
        (0.25, 0.03125)
    """
    check_number("pairs", pairs, at_least=1)
    return 2.0 ** (1 - pairs)


def pairs_needed(alpha: float = 0.05, comparisons: int = 1) -> int:
    """Return the fewest pairs that can show a difference at a level, as the smallest p of several.

    Examples:
        >>> pairs_needed(0.05), pairs_needed(0.05, comparisons=4)
        (6, 8)
    """
    check_number("alpha", alpha, above=0, below=1)
    check_number("comparisons", comparisons, at_least=1)
    return math.ceil(1 + math.log2(comparisons / alpha))
