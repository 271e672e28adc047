"""The statistics of a report: against scipy, answers worked out by hand, and their promises."""

import inspect
from itertools import product

import numpy as np
import pytest
import scipy.stats

from finetune_common.errors import ConfigurationError
from glue_harness.report.equivalence import equivalence_test, verdict_of
from glue_harness.report.statistics import (
    bootstrap_interval,
    holm,
    mean_interval,
    pairs_needed,
    probability_of_improvement,
    sign_flip_test,
    smallest_p,
    wilcoxon_test,
)

REPEATS = 1000
ALLOWED = 71
"""With 1,000 tests at 5 % more than 71 false alarms have a probability below 0.0015 (binomial)."""


def by_enumeration(differences: list[float]) -> float:
    """The definition, one assignment of signs at a time, in whole numbers."""
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(total >= observed for total in sums) / len(sums)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([5], 1.0),
        ([1, 2], 0.5),
        ([1, 2, 3], 0.25),
        ([1, 2, -3], 1.0),
        ([3, 1, -1], 0.75),  # the sums are 3, 5, 3, 1 and their negatives: six of eight reach 3
        ([0, 0, 0, 0], 1.0),
        ([2, 2, 2, 2, 2, 2, 2], 2 / 128),
    ],
)
def test_sign_flips_by_hand(differences: list[int], p: float) -> None:
    assert sign_flip_test(differences) == pytest.approx(p)


@pytest.mark.parametrize("pairs", range(1, 11))
def test_sign_flips_are_what_enumeration_gives_also_with_ties_and_zeros(pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    for _ in range(20):
        differences = generator.integers(-3, 5, size=pairs).tolist()
        assert sign_flip_test(differences) == by_enumeration(differences)
        assert sign_flip_test([d * 0.001 for d in differences]) == by_enumeration(differences)


@pytest.mark.parametrize("pairs", [4, 9])
def test_sign_flips_agree_with_scipy(pairs: int) -> None:
    differences = np.random.default_rng(pairs).normal(0.4, 1, size=pairs)
    reference = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(reference.pvalue)


def test_many_pairs_are_sampled_and_agree_with_the_normal_limit() -> None:
    """At 200 pairs the sum of flipped differences is normal; 9,999 draws err by at most 0.02 (4 sigma)."""
    differences = np.random.default_rng(0).normal(0.08, 1, size=200)
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert sign_flip_test(differences) == pytest.approx(2 * scipy.stats.norm.sf(abs(z)), abs=0.02)
    assert sign_flip_test(differences, seed=1) != sign_flip_test(differences)
    assert sign_flip_test(differences, seed=1) == sign_flip_test(differences, seed=1)
    assert sign_flip_test(np.ones(200)) == 1 / 10_000


@pytest.mark.parametrize("pairs", [1, 5, 10, 16])
def test_wilcoxon_agrees_with_scipys_exact_test(pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    for _ in range(10):
        differences = generator.normal(0.5, 1, size=pairs)
        reference = scipy.stats.wilcoxon(differences, method="exact")
        assert wilcoxon_test(differences) == pytest.approx(reference.pvalue)


def test_wilcoxon_leaves_out_zeros_and_shares_ranks() -> None:
    """Without the zero: 1, 1, 2 have ranks 1.5, 1.5, 3; only all plus and all minus reach a sum of 6."""
    assert wilcoxon_test([0, 1, 1, 2]) == 0.25
    assert wilcoxon_test([0.0, 0.0]) == 1.0
    assert wilcoxon_test([1, 1, 1, 1, 1, 100]) == wilcoxon_test([1, 1, 1, 1, 1, 2])


@pytest.mark.parametrize("test", [sign_flip_test, wilcoxon_test])
@pytest.mark.parametrize("pairs", [6, 10, 25])
def test_false_alarms_on_null_pairs_stay_within_the_level(test, pairs: int) -> None:
    """1,000 comparisons of a setting with itself: at most 5 % are called a difference, plus luck."""
    generator = np.random.default_rng(7)
    scores = generator.normal(0.8, 0.01, size=(REPEATS, 2, pairs))
    alarms = sum(test(ours - theirs) <= 0.05 for ours, theirs in scores)
    assert alarms <= ALLOWED
    assert alarms >= 10  # a test that never speaks would keep its level too


def test_false_alarms_of_skewed_scores_that_share_their_seeds_effect() -> None:
    """Seeds move both settings, and scores crash now and then; the pair's difference is symmetric."""
    generator = np.random.default_rng(8)
    shared = -generator.exponential(0.05, size=(REPEATS, 1, 8))
    scores = shared - generator.exponential(0.01, size=(REPEATS, 2, 8))
    assert sum(sign_flip_test(ours - theirs) <= 0.05 for ours, theirs in scores) <= ALLOWED


def test_corrected_families_have_a_false_alarm_as_rarely_as_one_comparison() -> None:
    """1,000 families of five settings against one baseline; uncorrected, many more have an alarm."""
    generator = np.random.default_rng(9)
    corrected = uncorrected = 0
    for _ in range(REPEATS):
        baseline, others = generator.normal(size=10), generator.normal(size=(5, 10))
        p_values = [sign_flip_test(other - baseline) for other in others]
        uncorrected += min(p_values) <= 0.05
        corrected += min(holm(p_values)) <= 0.05
    assert corrected <= ALLOWED
    assert uncorrected > 2 * ALLOWED


def test_a_real_difference_is_found() -> None:
    """Two standard deviations at eight seeds: in more than nine of ten experiments."""
    generator = np.random.default_rng(3)
    found = sum(sign_flip_test(generator.normal(2, 1, size=8)) <= 0.05 for _ in range(200))
    assert found > 180


def test_holm_by_hand() -> None:
    """Smallest times 4, next times 3, …, never falling and never above 1; order is kept."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ConfigurationError, match=r"p=1\.5 is out of range"):
        holm([1.5])


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("pairs", [3, 20])
def test_interval_is_scipys_bca_for_the_same_resamples(level: float, pairs: int) -> None:
    differences = np.random.default_rng(1).exponential(1, size=pairs)
    takes = inspect.signature(scipy.stats.bootstrap).parameters
    generator = "rng" if "rng" in takes else "random_state"  # scipy before 1.15
    for seed in range(3):
        settings = {"confidence_level": level, "method": "BCa", generator: np.random.default_rng(seed)}
        reference = scipy.stats.bootstrap((differences,), np.mean, **settings).confidence_interval
        interval = bootstrap_interval(differences, level, seed=seed)
        assert interval == pytest.approx((reference.low, reference.high))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """1,000 intervals of 25 skewed differences: between 91 and 98 % hold the mean."""
    generator = np.random.default_rng(4)
    held = 0
    for _ in range(REPEATS):
        low, high = bootstrap_interval(generator.exponential(1, size=25)) or (0.0, 0.0)
        held += low <= 1 <= high
    assert 910 <= held <= 980


def test_interval_of_few_or_equal_differences() -> None:
    assert bootstrap_interval([0.2]) is None
    assert bootstrap_interval([0.2] * 5) == pytest.approx((0.2, 0.2))
    assert bootstrap_interval([0.0, 0.0]) == (0.0, 0.0)
    low, high = bootstrap_interval([0.1, 0.2, 0.3]) or (0.0, 0.0)
    assert 0.1 <= low < 0.2 < high <= 0.3
    assert bootstrap_interval([0.1, 0.2, 0.3]) == (low, high)
    with pytest.raises(ConfigurationError, match="level"):
        bootstrap_interval([0.1, 0.2], level=95)


@pytest.mark.parametrize("pairs", [2, 3, 5, 9])
def test_interval_of_few_pairs_is_students(pairs: int) -> None:
    """Reference: scipy's one-sample t-test. Of 1,000 normal samples 93 to 97 % hold the mean."""
    generator = np.random.default_rng(6)
    held = 0
    for number in range(REPEATS):
        differences = generator.normal(0.3, 1, size=pairs)
        interval = mean_interval(differences)
        assert interval is not None
        if number < 10:
            reference = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
            assert interval == pytest.approx((reference.low, reference.high))
        held += interval[0] <= 0.3 <= interval[1]
    assert 930 <= held <= 970


def test_interval_of_many_pairs_is_the_bootstraps() -> None:
    differences = np.random.default_rng(7).exponential(1, size=10)
    assert mean_interval(differences) == bootstrap_interval(differences)
    assert mean_interval([0.2]) is None


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    generator = np.random.default_rng(5)
    ours, theirs = generator.integers(0, 6, size=7).tolist(), generator.integers(0, 5, size=9).tolist()
    reference = scipy.stats.mannwhitneyu(ours, theirs).statistic / 63
    assert probability_of_improvement(ours, theirs) == pytest.approx(reference)
    assert probability_of_improvement([2, 3], [1, 1]) == 1.0
    assert probability_of_improvement([1], [1]) == 0.5
    assert probability_of_improvement(theirs, ours) == pytest.approx(1 - reference)


def test_how_many_seeds_it_takes() -> None:
    """2/2^5 = 0.0625 is above 5 %, 2/2^6 = 0.03125 is not; three comparisons need 2/2^n <= 0.05/3."""
    assert [smallest_p(n) for n in (1, 2, 5)] == [1.0, 0.5, 0.0625]
    assert pairs_needed(0.05) == 6
    assert pairs_needed(0.5) == 2
    assert pairs_needed(0.05, comparisons=3) == 7
    for pairs in range(1, 17):
        assert sign_flip_test(range(1, pairs + 1)) == smallest_p(pairs)
        assert wilcoxon_test(range(1, pairs + 1)) == smallest_p(pairs)


@pytest.mark.parametrize("bad", [[], [float("nan")], [1.0, float("inf")]])
def test_what_is_no_difference_is_refused(bad: list[float]) -> None:
    for function in (sign_flip_test, wilcoxon_test, bootstrap_interval, mean_interval):
        with pytest.raises(ConfigurationError, match="at least one finite number"):
            function(bad)


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 20])
def test_equivalence_is_two_one_sided_t_tests_of_scipy(pairs: int) -> None:
    generator = np.random.default_rng(pairs)
    for margin in (0.1, 0.5, 2.0):
        values = generator.normal(generator.uniform(-1, 1), 0.4, size=pairs)
        above = scipy.stats.ttest_1samp(values, -margin, alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(values, margin, alternative="less").pvalue
        assert equivalence_test(values, margin) == pytest.approx(max(above, below))
        assert equivalence_test(-values, margin) == pytest.approx(equivalence_test(values, margin))


def test_equivalence_is_ninety_percent_of_the_interval_inside_the_margin() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = generator.normal(0.1, 0.5, size=8)
        low, high = mean_interval(values, 0.90) or (0.0, 0.0)
        assert (equivalence_test(values, 0.5) <= 0.05) == (low > -0.5 and high < 0.5)


def test_equivalence_keeps_its_level_at_the_margin() -> None:
    """Where the true difference is the margin itself, "equal" is wrong in at most one case of twenty."""
    generator = np.random.default_rng(1)
    wrong = sum(equivalence_test(generator.normal(0.5, 0.6, 8), 0.5) <= 0.05 for _ in range(REPEATS))
    assert wrong <= ALLOWED


def test_equivalence_without_any_spread() -> None:
    """Of differences around δ or more, each is below δ in at most half of all cases: eight in 2⁻⁸."""
    assert equivalence_test([0.0] * 8, 0.005) == equivalence_test([-0.004] * 8, 0.005) == 2**-8
    assert equivalence_test([0.0] * 4, 0.005) > 0.05
    assert equivalence_test([0.3] * 8, 0.005) == equivalence_test([0.005] * 8, 0.005) == 1.0
    with pytest.raises(ConfigurationError, match="margin"):
        equivalence_test([0.1, 0.2], 0.0)


@pytest.mark.parametrize(
    ("difference", "different", "equal", "margin", "said"),
    [
        (None, 1.0, 1.0, 0.005, "undecided"),
        (0.01, 0.04, 0.9, 0.005, "better"),
        (-0.01, 0.04, 0.9, 0.005, "worse"),
        (0.01, 0.06, 0.06, 0.005, "undecided"),
        (0.002, 0.01, 0.01, 0.005, "equal within ±0.005"),
        (0.002, 0.01, 0.01, None, "better"),
    ],
)
def test_verdicts(
    difference: float | None, different: float, equal: float, margin: float | None, said: str
) -> None:
    assert verdict_of(difference, different, equal, margin, alpha=0.05) == said
