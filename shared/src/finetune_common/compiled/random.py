"""Random numbers that are a function of their position and of keys (a counter-based generator).

No random generator advances, so that a run keeps its dropout masks. A step can be repeated exactly, in any
order and in any number of pieces, and a compiler can fuse the numbers into the loop that uses them.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["normal", "random_bits", "scramble", "uniform16"]

GOLDEN = 0x9E3779B1 - 2**32
"""A prime next to 2³²/φ: D. Knuth's multiplier, The Art of Computer Programming, vol. 3, section 6.4."""
BYTES = 0x00FF00FF
"""Every second byte."""
FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32
"""The multipliers of lowbias32: C. Wellons, "Prospecting for Hash Functions" (2018)."""


def scramble(bits: Tensor, key: Tensor | int | None = None) -> Tensor:
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


def random_bits(position: Tensor, first: Tensor | int, second: Tensor | int) -> Tensor:
    """Return 32 random bits for every position.

    Args:
        position: int32.
        first: Key, int32 or an integer.
        second: Key, likewise. Keys must be random numbers: hash a counter first (`scramble`), since the
            streams of neighbouring keys resemble each other.

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

    z = p(s), where s is the sum of eight independent numbers, uniform in [-½, ½), and p the odd polynomial of
    degree 13 nearest to Φ⁻¹(F(s)), F the distribution of such a sum (Irwin's and Hall's). The distribution of
    z differs from the normal one by 2e-5 at most, its tail P(|z| > x) by 1 % up to x = 6, its variance by
    3e-5. The eight numbers are the bytes of a hash of the position and of a hash of that hash; the bits in
    which the two differ fill the gaps between the sums. Any device gives the same numbers, up to rounding.
    |z| ≤ 7.7.

    It takes a CPU less than half the time of the Box-Muller transform, as it needs no logarithm or cosine.

    Args:
        count: How many.
        keys: int32, three random numbers (see `random_bits`); adding k to the first one skips k positions. Or
            of shape (3, count): keys for each number, with the position already added to the first.

    Returns:
        float32, of shape (count,).

    Examples:
        >>> z = normal(100_000, torch.tensor([1, 2, 3], dtype=torch.int32))
        >>> bool(z.mean().abs() < 0.02), bool((z.var() - 1).abs() < 0.02)
        (True, True)
    """
    position = keys[0]
    if keys.dim() == 1:
        position = torch.arange(count, dtype=torch.int32, device=keys.device) + position
    first = random_bits(position, keys[1], keys[2])
    second = (first ^ keys[1]) * SECOND
    second = second ^ ((second >> 15) & 0x1FFFF)
    pairs = (first & BYTES) + ((first >> 8) & BYTES) + (second & BYTES) + ((second >> 8) & BYTES)
    total = (pairs & 0xFFFF) + (pairs >> 16)
    s = total.to(torch.float32) * 2.0**-8 + ((first ^ second).to(torch.float32) * 2.0**-40 - 4 * 255 / 256)
    x = s * s
    # Numbers written here become constants of compiled code; a table would be read again and again.
    p = x * 1.95839e-07 - 6.13207e-06
    p = p * x + 7.75432e-05
    p = p * x - 4.16545e-04
    p = p * x + 1.434846e-03
    p = p * x + 9.74928e-03
    return s * (p * x + 1.201798)
