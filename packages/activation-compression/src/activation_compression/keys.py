"""Keys of random numbers: a hash of a seed and a number, computed on the device that uses them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["keys_of"]


def keys_of(seed: int, first: int, count: int, device: torch.device) -> Tensor:
    """Return the keys of `count` tensors, starting with number `first`: int32 (count, 2).

    Examples:
        >>> keys_of(0, 0, 3, torch.device("cpu"))[2].equal(keys_of(0, 2, 1, torch.device("cpu"))[0])
        True
    """
    numbers = torch.arange(first, first + count, device=device)
    mixed = _mix(numbers + _signed(seed * 0x9E3779B97F4A7C15))
    return torch.stack((mixed & 0x7FFFFFFF, _shifted(mixed, 33)), dim=1).to(torch.int32)


def _mix(value: Tensor) -> Tensor:
    """Hash 64-bit integers by the finaliser of SplitMix64, on their device: nothing is copied to it."""
    value = value + _signed(0x9E3779B97F4A7C15)
    value = (value ^ _shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shifted(value, 31)


def _signed(value: int) -> int:
    """Return the int64 with the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(value: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros."""
    return (value >> by) & (2 ** (64 - by) - 1)
