"""The method as pure functions of tensors: the specification from which the kernels are built."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_noise", "average", "ema_variance", "welford"]


def welford(mean: Tensor, deviations: Tensor, value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Add one value to a running mean and sum of squared deviations.

    δ = x - m;  m ← m + δ/n;  M ← M + δ²·(n-1)/n

    Args:
        mean: Mean m of the first n-1 values.
        deviations: Sum M of their squared deviations from the mean.
        value: The n-th value x.
        count: n, including this value; at least 1.

    Returns:
        The mean and the sum of squared deviations of n values; M/(n-1) is their unbiased variance.

    Source:
        B. P. Welford, Technometrics 4 (1962) 419.
    """
    delta = value - mean
    return mean + delta / count, deviations + delta * delta * ((count - 1) / count)


def average(first: Tensor, second: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Add one value to the moving averages of the values (decay 0.9) and of their squares (0.999)."""
    return first + 0.1 * (value - first), second + 0.001 * (value * value - second)


def ema_variance(first: Tensor, second: Tensor, debias1: Tensor, debias2: Tensor) -> Tensor:
    """Return max(0, v̂ - m̂²) from moving averages m, v and the factors that remove their bias."""
    mean = first * debias1
    return torch.clamp(second * debias2 - mean * mean, min=0)


def add_noise(gradient: Tensor, noise: Tensor) -> Tensor:
    """Return gradient + noise; the gradient, bit for bit, where the noise is zero or not finite."""
    return torch.where(noise.isfinite() & (noise != 0), gradient + noise, gradient)
