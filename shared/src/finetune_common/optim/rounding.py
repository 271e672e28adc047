"""Stochastic rounding of float32 values to bfloat16."""

import torch
from torch import Tensor

from finetune_common.compiled import random_bits, scramble

__all__ = ["round_stochastically"]


def round_stochastically(value: Tensor, salt: int | Tensor, start: int = 0) -> Tensor:
    """Round to one of the two neighbouring bfloat16 numbers, unbiased: E[result] = value.

    The random bits are a hash of `salt` and each element's position, so that a step can be repeated exactly,
    in any order and in any number of pieces, without touching a random generator.

    Args:
        value: float32, one-dimensional.
        salt: Which stream of random bits to use: an int32 number.
        start: Position of the first element.

    Returns:
        A bfloat16 tensor of the same shape.

    Examples:
        >>> x = torch.full((10_000,), 1.001)
        >>> bool((round_stochastically(x, salt=7).double().mean() - 1.001).abs() < 2e-4)
        True
    """
    position = torch.arange(start, start + value.numel(), dtype=torch.int32, device=value.device)
    key = scramble(torch.as_tensor(salt, dtype=torch.int32, device=value.device))
    noise = (random_bits(position, key, scramble(key)) >> 16) & 0xFFFF
    return ((value.view(torch.int32) + noise) & -65536).view(torch.float32).to(torch.bfloat16)
