"""Are two settings practically equal? The test, and the verdict on a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr

from finetune_common.errors import ConfigurationError, check_number, shown

__all__ = ["UNDECIDED", "equivalence_test", "verdict_of"]

UNDECIDED = "undecided"


def equivalence_test(differences: Sequence[float] | np.ndarray, margin: float) -> float:
    """Return the p-value of "the mean difference is ±margin or more", by two one-sided t-tests.

    p = max(P(T ≥ (x̄ + δ)/(s/√n)), P(T ≤ (x̄ − δ)/(s/√n))) with n − 1 degrees of freedom: at most α exactly
    where Student's interval at 1 − 2α lies inside ±δ. It holds for normal differences. If all n differences
    are equal, t is not defined: then p = 2⁻ⁿ if they lie inside ±δ, as in a sign test against δ, else 1.

    Args:
        differences: One per seed, any unit.
        margin: δ, in the same unit, above 0: the smallest difference that matters, fixed before the runs.

    Returns:
        A number in (0, 1]; 1 for a single pair, which has no spread.

    Raises:
        ConfigurationError: No differences, some that are not finite, or a margin that is not above 0.

    Source: Schuirmann, A Comparison of the Two One-Sided Tests Procedure and the Power Approach (1987).

    Examples:
        >>> round(equivalence_test([0.001, -0.001, 0.002, 0.0, -0.002, 0.001], margin=0.005), 5)
        0.00024
        >>> equivalence_test([0.0, 0.0], margin=0.005), equivalence_test([0.01], margin=0.005)
        (0.25, 1.0)
    """
    check_number("margin", margin, above=0)
    values = np.asarray(differences, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ConfigurationError(
            f"differences: give at least one finite number, not {shown(list(differences))}"
        )
    if len(values) < 2:
        return 1.0
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    if error <= 1e-12 * abs(mean):
        return 2.0 ** -len(values) if abs(mean) < margin else 1.0
    return float(stdtr(len(values) - 1, (abs(mean) - margin) / error))


def verdict_of(
    difference: float | None, different: float, equal: float, margin: float | None, alpha: float
) -> str:
    """Return one of four verdicts: equal within ±δ, better, worse, undecided.

    "Equal" comes first: a difference that is real but too small to matter is called equal.

    Args:
        difference: Mean of setting − baseline; None without a pair.
        different: p-value of "no difference", corrected.
        equal: p-value of "a difference of δ or more", corrected.
        margin: δ; None if not given: then nothing is called equal.
        alpha: The level of both.

    Examples:
        >>> verdict_of(0.02, different=0.01, equal=1.0, margin=0.005, alpha=0.05)
        'better'
        >>> verdict_of(0.001, different=0.4, equal=0.01, margin=0.005, alpha=0.05)
        'equal within ±0.005'
    """
    if difference is None:
        return UNDECIDED
    if margin is not None and equal <= alpha:
        return f"equal within ±{margin:g}"
    if different <= alpha:
        return "better" if difference > 0 else "worse"
    return UNDECIDED
