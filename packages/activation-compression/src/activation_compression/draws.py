"""The keys of the random numbers, one pair for each tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from activation_compression import kernels
from activation_compression.keys import keys_of

__all__ = ["Draws"]

KEYS = 1024
"""Pairs of keys that are computed at a time."""


class Draws:
    """A sequence of keys that a seed and a count of tensors determine.

    Args:
        seed: At least 0.

    Attributes:
        drawn: Pairs of keys that were drawn so far.
        reseeded: Names of tensors that get other random numbers.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.drawn = seed, 0
        self.reseeded: frozenset[str] = frozenset()
        self._keys: tuple[int, torch.device, Tensor] | None = None

    def next(self, block: Tensor, name: str) -> Tensor | None:
        """Return the keys of the next tensor, on the device of its block; None for a fake one."""
        if kernels.is_fake(block):
            return None
        first, index = divmod(self.drawn, KEYS)
        if self._keys is None or self._keys[:2] != (first, block.device):
            self._keys = (first, block.device, keys_of(self.seed, first * KEYS, KEYS, block.device))
        self.drawn += 1
        if name in self.reseeded:
            return keys_of(self.seed + 1, self.drawn - 1, 1, block.device)[0]
        return self._keys[2][index]
