"""The method as pure functions of tensors: the specification that the kernels are made of."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_noise", "average", "ema_variance", "welford"]


def welford(mean: Tensor, deviations: Tensor, value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Take one more value into a mean and a sum of squared deviations.

    δ = x - m;  m ← m + δ/n;  M ← M + δ²·(n-1)/n

    Args:
        mean: Mean m of the n-1 values before.
        deviations: Sum M of their squared deviations from the mean.
        value: The n-th value x.
        count: n, at least 1, this value included.

    Returns:
        The mean and the sum of squared deviations of n values; M/(n-1) is their unbiased variance.

    Source:
        B. P. Welford, Technometrics 4 (1962) 419.
    """
    delta = value - mean
    return mean + delta / count, deviations + delta * delta * ((count - 1) / count)


def average(first: Tensor, second: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Take one more value into exponential moving averages of it and of its square (0.9 and 0.999)."""
    return first + 0.1 * (value - first), second + 0.001 * (value * value - second)


def ema_variance(first: Tensor, second: Tensor, debias1: Tensor, debias2: Tensor) -> Tensor:
    """Return max(0, v̂ - m̂²) from moving averages m, v and the factors that take their bias away."""
    mean = first * debias1
    return torch.clamp(second * debias2 - mean * mean, min=0)


def add_noise(gradient: Tensor, noise: Tensor) -> Tensor:
    """Return gradient + noise, and the gradient itself, to the bit, where the noise is zero or not finite."""
    return torch.where(noise.isfinite() & (noise != 0), gradient + noise, gradient)
