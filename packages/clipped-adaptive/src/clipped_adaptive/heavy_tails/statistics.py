"""Statistics of a sample's tail."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_number

__all__ = ["hill", "hill_path", "outlier_ratios"]

NORMAL_MILD, NORMAL_EXTREME = 0.0035, 1.2e-6
"""A normal sample's shares beyond Q3 + 1.5 IQR and Q3 + 3 IQR, rounded as in the paper."""


@explain_arguments
def outlier_ratios(x: object) -> tuple[float, float]:
    """Return the share of values far above the middle half, relative to a normal sample.

        ρ_mild    = P(X > Q₃ + 1.5 IQR) / 0.0035
        ρ_extreme = P(X > Q₃ + 3 IQR) / 1.2e-6,      IQR = Q₃ - Q₁

    About (1, 1) for a large normal sample, larger for heavier tails. In 1,000 values a single extreme one
    gives ρ_extreme = 833, so this ratio shows little more than whether there are any.

    Args:
        x: A tensor, array or list of at least 4 finite values, in any shape. Quartiles are interpolated
            linearly.

    Raises:
        ConfigurationError: Too few values, or some that are not finite.

    Examples:
        >>> mild, extreme = outlier_ratios([1.0, 2.0, 3.0, 4.0, 100.0])  # Q₁ = 2, Q₃ = 4
        >>> round(mild, 2), round(extreme, 2)
        (57.14, 166666.67)

    Source: arXiv 2406.04443, the heavy-tail metric of its experiments (ρ_mR and ρ_eR).
    """
    values = _values(x, at_least=4)
    low, high = (_quantile(values, q) for q in (0.25, 0.75))
    mild, extreme = (
        (values > high + whisker * (high - low)).double().mean().item() for whisker in (1.5, 3.0)
    )
    return mild / NORMAL_MILD, extreme / NORMAL_EXTREME


@explain_arguments
def hill(x: object, k: int) -> float:
    """Return Hill's estimate of the tail index α, where P(X > x) falls as x^-α.

        1/α̂ = 1/k Σ_{i≤k} ln(X_(i) / X_(k+1)),    X_(1) ≥ X_(2) ≥ …

    Moments below α exist: α < 2 means infinite variance. The standard error is about α/√k. A light tail has
    no index; its estimate grows as k falls (see `hill_path`).

    Args:
        x: A tensor, array or list of finite values, in any shape. Only the upper tail of positive values
            counts; pass absolute values for both tails.
        k: How many of the largest values to use: from 1 to one less than the number of positive values; best
            a few per cent.

    Returns:
        α̂; ∞ when the k + 1 largest values are equal.

    Raises:
        ConfigurationError: k out of range, or values that are not finite.

    Examples:
        >>> from math import e
        >>> round(hill([1.0, e, e**2, e**3], k=3), 6)  # 1/α = (3 + 2 + 1)/3
        0.5

    Source: Hill, "A simple general approach to inference about the tail of a distribution" (1975), eq. 3.1.
    """
    path = hill_path(x)
    check_number("k", k, at_least=1, at_most=len(path))
    return path[k - 1].item()


@explain_arguments
def hill_path(x: object) -> Tensor:
    """Return Hill's estimate for every k; a tail index is reliable only where they are level.

    Args:
        x: As for `hill`, at least 2 positive values.

    Returns:
        float64; entry k - 1 is `hill(x, k)`, one entry fewer than there are positive values.

    Raises:
        ConfigurationError: Too few positive values, or values that are not finite.

    Examples:
        >>> from math import e
        >>> hill_path([1.0, e, e**2])
        tensor([1.0000, 0.6667], dtype=torch.float64)
    """
    values = _values(x, at_least=2)
    logs = values[values > 0].sort(descending=True).values.log()
    if len(logs) < 2:
        raise ConfigurationError(f"Hill's estimate needs 2 positive values, found {len(logs)}: pass norms")
    k = torch.arange(1, len(logs), dtype=torch.float64)
    return 1 / (logs[:-1].cumsum(0) / k - logs[1:]).clamp(min=0)


def _values(x: object, at_least: int) -> Tensor:
    values = torch.as_tensor(x, dtype=torch.float64, device="cpu").detach().flatten()
    if len(values) < at_least or not values.isfinite().all():
        bad = int((~values.isfinite()).sum())
        raise ConfigurationError(
            f"the sample has {len(values)} values, {bad} of them not finite: give at least {at_least} "
            "values, all finite"
        )
    return values


def _quantile(values: Tensor, q: float) -> Tensor:
    """`torch.quantile` without its limit of 16 million values."""
    ordered, position = values.sort().values, q * (len(values) - 1)
    below = int(position)
    return torch.lerp(ordered[below], ordered[min(below + 1, len(values) - 1)], position - below)
