"""Kernels that run over whole tensors in place, each in one pass over memory.

A kernel takes one-dimensional tensors of equal length, a row of numbers (one-dimensional, in the arithmetic
dtype) and three int32 keys for its random numbers. For large tensors `torch.compile` makes one pass of it, on
CPU and CUDA alike. Small tensors, and all of them if no compiler works, run as written, in blocks that stay
in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from finetune_common.compiled import Compiled, normal
from noise_injection.rules import add_noise, average, ema_variance, welford

__all__ = [
    "add_adam",
    "add_ema",
    "add_microbatch",
    "add_plain",
    "add_running",
    "changed_by",
    "observe",
    "run",
    "sums",
]

Kernel = Callable[[Sequence[Tensor], Tensor, Any], None]
"""A function of tensors, numbers and keys; its keys are a tensor, or None if it draws nothing."""

COMPILE_FROM = 2**16
"""Elements from which a compiled call pays for itself."""
BLOCK = 2**16
LARGEST = 2**28
"""Elements that one compiled call handles: positions are 32-bit numbers."""


def observe(tensors: Sequence[Tensor], numbers: Tensor, keys: None) -> None:
    """Mean, deviations, contribution; count: Welford's step."""
    mean, deviations, value = tensors
    [count] = numbers.unbind()
    new = welford(mean, deviations, value.to(mean.dtype), count)
    mean.copy_(new[0])
    deviations.copy_(new[1])


def add_microbatch(tensors: Sequence[Tensor], numbers: Tensor, keys: Tensor) -> None:
    """Gradient, deviations; scale: g ← g + scale·sqrt(M)·z."""
    gradient, deviations = tensors
    [scale] = numbers.unbind()
    _add(gradient, scale * deviations.sqrt(), keys)


def add_running(tensors: Sequence[Tensor], numbers: Tensor, keys: Tensor) -> None:
    """Gradient, mean, deviations; scale, 1/unit, finite, count: Welford's step, then its noise."""
    gradient, mean, deviations = tensors
    scale, unscale, finite, count = numbers.unbind()
    new = welford(mean, deviations, gradient.to(mean.dtype) * unscale, count)
    new_mean, new_deviations = (
        torch.where(finite > 0, n, old) for n, old in zip(new, tensors[1:], strict=True)
    )
    _add(gradient, scale * torch.sqrt(new_deviations / (count - 1)), keys)
    mean.copy_(new_mean)
    deviations.copy_(new_deviations)


def add_ema(tensors: Sequence[Tensor], numbers: Tensor, keys: Tensor) -> None:
    """Gradient, m, v; scale, 1/unit, finite, debiasing factors: noise from m and v, then their next value."""
    gradient, first, second = tensors
    scale, unscale, finite, debias1, debias2 = numbers.unbind()
    new = average(first, second, gradient.to(first.dtype) * unscale)
    new_first, new_second = (torch.where(finite > 0, n, old) for n, old in zip(new, tensors[1:], strict=True))
    _add(gradient, scale * ema_variance(first, second, debias1, debias2).sqrt(), keys)
    first.copy_(new_first)
    second.copy_(new_second)


def add_adam(tensors: Sequence[Tensor], numbers: Tensor, keys: Tensor) -> None:
    """Gradient, Adam's m and v; scale, debiasing factors: the noise of m and v, which stay as they are."""
    gradient, first, second = tensors
    scale, debias1, debias2 = numbers.unbind()
    first, second = first.to(numbers.dtype), second.to(numbers.dtype)
    _add(gradient, scale * ema_variance(first, second, debias1, debias2).sqrt(), keys)


def add_plain(tensors: Sequence[Tensor], numbers: Tensor, keys: Tensor) -> None:
    """Gradient; scale: g ← g + scale·z."""
    [gradient] = tensors
    [scale] = numbers.unbind()
    _add(gradient, scale, keys)


def changed_by(kernel: Kernel) -> int:
    """Return how many of its tensors a kernel changes: these come first."""
    several: dict[Kernel, int] = {observe: 2, add_running: 3, add_ema: 3}
    return several.get(kernel, 1)


def _add(gradient: Tensor, spread: Tensor, keys: Tensor) -> None:
    noise = spread * normal(gradient.shape[0], keys)
    gradient.copy_(add_noise(gradient.to(spread.dtype), noise))


def sums(gradient: Tensor, mean: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return Σg², and with a mean also Σg·m and Σm², each over all elements.

    Args:
        gradient: One-dimensional.
        mean: Of the same length, or None.
        dtype: The arithmetic.
    """
    if gradient.numel() == 0:
        return torch.zeros(1 if mean is None else 3, dtype=dtype, device=gradient.device)
    vectors = (gradient,) if mean is None else (gradient, mean)
    products = row_products if gradient.numel() < COMPILE_FROM else _compiled(row_products)
    in_rows = gradient.numel() // ROW * ROW
    parts = [products([v[:in_rows].view(-1, ROW) for v in vectors], dtype)] if in_rows else []
    if in_rows < gradient.numel():
        parts.append(row_products([v[in_rows:].unsqueeze(0) for v in vectors], dtype))
    return torch.cat(parts, dim=1).sum(dim=1)


ROW = 2**12
"""Elements that are summed at a time: rounding errors grow with it."""


def row_products(vectors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    vectors = [v.to(dtype) for v in vectors]
    pairs = [(a, b) for i, a in enumerate(vectors) for b in vectors[i:]]
    return torch.stack([(a * b).sum(dim=1) for a, b in pairs])


def run(kernel: Kernel, tensors: Sequence[Tensor], numbers: Tensor, keys: Tensor | None) -> None:
    """Run a kernel over tensors, in place.

    Args:
        kernel: One of this module.
        tensors: One-dimensional, of equal length; see the kernel.
        numbers: One-dimensional; see the kernel.
        keys: int32, three numbers; None for a kernel without noise.
    """
    count = tensors[0].numel()
    large = count >= COMPILE_FROM and _compiled(kernel).usable
    block = LARGEST if large else max(BLOCK, count if tensors[0].device.type != "cpu" else 0)
    call = _compiled(kernel) if large else kernel
    for start in range(0, count, block):
        blocks = [tensor[start : start + block] for tensor in tensors] if count > block else tensors
        call(blocks, numbers, keys if keys is None or start == 0 else keys + keys.new_tensor([start, 0, 0]))


@cache
def _compiled(function: Callable[..., object]) -> Compiled:
    return Compiled(function, "gradient noise", dynamic=True)
