"""Random numbers that are a function of their position and of keys (a counter-based generator).

No random generator moves, so that a run keeps its dropout masks. A step can be repeated exactly, in any order
and in any number of pieces, and a compiler fuses the numbers into the loop that uses them.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from torch import Tensor

__all__ = ["normal", "random_bits", "scramble", "uniform16"]

GOLDEN = 0x9E3779B1 - 2**32
"""A prime next to 2³²/φ: D. Knuth's multiplier, The Art of Computer Programming, vol. 3, section 6.4."""
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32
"""The multipliers of lowbias32: C. Wellons, "Prospecting for Hash Functions" (2018)."""


def scramble(bits: Tensor, key: Any = None) -> Tensor:
    """Hash 32-bit numbers, one to one (lowbias32), with a key between its two rounds.

    Args:
        bits: int32.
        key: int32 or an integer; another key gives another permutation of all numbers. None is 0.

    Examples:
        >>> scramble(torch.arange(3, dtype=torch.int32)).tolist()
        [0, 1753845952, -787275391]
    """
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * FIRST
    bits = bits if key is None else bits + key
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * SECOND
    return bits ^ ((bits >> 16) & 0xFFFF)


def random_bits(position: Tensor, first: Any, second: Any) -> Tensor:
    """Return 32 random bits for every position.

    Args:
        position: int32.
        first: Key, int32 or an integer.
        second: Key, likewise. Keys are random numbers themselves: a counter is hashed before (`scramble`),
            as the streams of neighbouring keys resemble each other.

    Returns:
        int32, of the shape of `position`.

    Examples:
        >>> bits = random_bits(torch.arange(100_000, dtype=torch.int32), 1, 2)
        >>> round(float((bits < 0).float().mean()), 2)
        0.5
    """
    return scramble((position ^ first) * GOLDEN, second)


def uniform16(bits: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent numbers in {0, 1, …, 65535}/65536 for 32 random bits each, as float32.

    Examples:
        >>> [half.tolist() for half in uniform16(torch.tensor([0x4000_8000], dtype=torch.int32))]
        [[0.5], [0.25]]
    """
    return (bits & 0xFFFF).float() * 2.0**-16, ((bits >> 16) & 0xFFFF).float() * 2.0**-16


def normal(count: int, keys: Tensor) -> Tensor:
    """Return standard normal numbers, a function of their position and three keys.

    Two 32-bit hashes of the position give, by Box and Muller, sqrt(-2 ln u)·cos(2π v). Any device gives the
    same numbers, up to the rounding of log and cos. |z| ≤ 5.77, as u has 24 bits.

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
    first = scramble(scramble(position + keys[0]) ^ keys[1])
    second = scramble(first ^ keys[2])
    uniform = (((first >> 8) & 0xFFFFFF) + 1).to(torch.float32) * 2**-24
    return torch.sqrt(-2 * torch.log(uniform)) * torch.cos(second.to(torch.float32) * (pi * 2**-31))
