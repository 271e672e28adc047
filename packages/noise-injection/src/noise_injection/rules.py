"""The method as pure functions of tensors: the specification that the kernels are made of."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

__all__ = ["add_noise", "average", "ema_variance", "normal", "welford"]


def normal(count: int, keys: Tensor) -> Tensor:
    """Return standard normal numbers that are a function of their position and three keys.

    Two 32-bit hashes of the position give, by Box and Muller, sqrt(-2 ln u)·cos(2π v). Nothing else is read
    or written: no random generator moves, any device gives the same numbers (up to the rounding of log and
    cos), and a compiler fuses them into the kernel that uses them. |z| ≤ 5.77, as u has 24 bits.

    Args:
        count: How many.
        keys: int32, three numbers; adding k to the first one skips k positions.

    Returns:
        float32, of shape (count,).

    Examples:
        >>> z = normal(100_000, torch.tensor([1, 2, 3], dtype=torch.int32))
        >>> bool(z.mean().abs() < 0.02), bool((z.var() - 1).abs() < 0.02)
        (True, True)
    """
    position = torch.arange(count, dtype=torch.int32, device=keys.device)
    first = _mix(_mix(position + keys[0]) ^ keys[1])
    second = _mix(first ^ keys[2])
    uniform = (((first >> 8) & 0xFFFFFF) + 1).to(torch.float32) * 2**-24
    return torch.sqrt(-2 * torch.log(uniform)) * torch.cos(second.to(torch.float32) * (pi * 2**-31))


def _mix(bits: Tensor) -> Tensor:
    """Scramble int32 numbers, one to one (C. Wellons' lowbias32)."""
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return bits ^ ((bits >> 16) & 0xFFFF)


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
