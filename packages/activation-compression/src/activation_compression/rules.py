"""The quantiser as pure functions of tensors: what is computed, in float32, without a word about how fast.

A tensor is cut into groups of S elements, and a group into 8 / bits *parts* of S·bits/8 neighbours. Byte j of
a group's codes holds element j of every part, the first part in the lowest bits. So all parts of a group are
read, reduced and written side by side: one pass over memory, on a GPU one kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from finetune_common.compiled import random_bits, uniform16

__all__ = ["decode", "decode_flags", "encode", "encode_flags", "encode_gate", "noise16", "parts_of"]

TINIEST = 2.0**-126
"""The smallest step: the smallest normal float32."""


def parts_of(bits: int) -> int:
    """Return how many elements share a byte.

    Examples:
        >>> [parts_of(bits) for bits in (1, 2, 4, 8)]
        [8, 4, 2, 1]
    """
    return 8 // bits


def noise16(count: int, width: int, offset: int, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent numbers in {0, 1, …, 65535}/65536 for every position of a grid.

    Args:
        count: Rows of the grid.
        width: Columns of the grid.
        offset: Position of the first element.
        keys: int32, two numbers.

    Returns:
        Two float32 tensors (count, width).

    Examples:
        >>> u, v = noise16(1000, 128, 0, torch.tensor([1, 2], dtype=torch.int32))
        >>> round(float(u.mean()), 2), round(float((u * v).mean()), 2)
        (0.5, 0.25)
    """
    rows = torch.arange(count, dtype=torch.int32, device=keys.device).unsqueeze(1) * width
    position = rows + torch.arange(width, dtype=torch.int32, device=keys.device) + offset
    return uniform16(random_bits(position, *keys.unbind()))


def _bfloat16_below(x: Tensor) -> Tensor:
    """Round float32 to bfloat16 towards -∞ (the value stays float32)."""
    raw = x.view(torch.int32)
    return ((raw + ((raw >> 31) & 0xFFFF)) & -65536).view(torch.float32)


def _bfloat16_above(x: Tensor) -> Tensor:
    """Round a non-negative float32 to bfloat16 towards +∞ (the value stays float32)."""
    return ((x.view(torch.int32) + 0xFFFF) & -65536).view(torch.float32)


def encode(x: Tensor, bits: int, size: int, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise groups with stochastic rounding; E[decode(encode(x))] = x.

        m = ⌊min x⌋    s = ⌈(max x - m) / (2ᵇ - 1)⌉    q = ⌊(x - m) / s + u⌋,  u ~ U[0, 1)

    m is rounded down and s up to bfloat16, so that no element is clamped. A group with an element that is
    not finite gets s = NaN, and comes back as NaN altogether.

    Args:
        x: One-dimensional, floating, a multiple of `size` elements.
        bits: 1, 2, 4 or 8.
        size: Elements of a group, a multiple of 8 / bits.
        keys: int32, two numbers: the stream of random numbers.

    Returns:
        Codes (uint8, one-dimensional), m and s (bfloat16, one a group).

    Examples:
        >>> keys = torch.tensor([3, 4], dtype=torch.int32)
        >>> codes, low, step = encode(torch.arange(8.0), 4, 8, keys)
        >>> codes.shape, low.item(), step.item() >= 7 / 15
        (torch.Size([4]), 0.0, True)
    """
    parts, levels = parts_of(bits), 2**bits - 1
    pieces = [part.float() for part in x.view(-1, parts, size // parts).unbind(1)]
    low, high = pieces[0], pieces[0]
    for piece in pieces[1:]:
        low, high = torch.minimum(low, piece), torch.maximum(high, piece)
    low = _bfloat16_below(low.amin(dim=1, keepdim=True))
    width = high.amax(dim=1, keepdim=True) - low
    step = _bfloat16_above((width / levels).clamp(min=TINIEST))
    inverse = 1.0 / step
    codes, noise = None, ()
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            columns = size // parts
            offset = (number // 2) * len(piece) * columns
            noise = noise16(len(piece), columns, offset, keys)
        q = torch.floor((piece - low) * inverse + noise[number % 2]).clamp(max=levels).to(torch.int32)
        shifted = (q & levels) << (bits * number)
        codes = shifted if codes is None else codes | shifted
    assert codes is not None
    step = torch.where(width < torch.inf, step, torch.nan)
    return (
        codes.to(torch.uint8).view(-1),
        low.to(torch.bfloat16).view(-1),
        step.to(torch.bfloat16).view(-1),
    )


def decode(codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int, dtype: torch.dtype) -> Tensor:
    """Return m + q·s of every element.

    Args:
        codes: From `encode`.
        low: From `encode`.
        step: From `encode`.
        bits: As given to `encode`.
        size: As given to `encode`.
        dtype: Of the result. float16 ends at its largest number.

    Examples:
        >>> keys = torch.tensor([3, 4], dtype=torch.int32)
        >>> decode(*encode(torch.tensor([0.0, 0.0, 15.0, 15.0]), 4, 4, keys), 4, 4, torch.float32)
        tensor([ 0.,  0., 15., 15.])
    """
    parts, levels = parts_of(bits), 2**bits - 1
    packed = codes.view(-1, 1, size // parts).to(torch.int32)
    shifts = bits * torch.arange(parts, dtype=torch.int32, device=codes.device).view(1, parts, 1)
    x = ((packed >> shifts) & levels).float() * step.float().view(-1, 1, 1) + low.float().view(-1, 1, 1)
    if dtype == torch.float16:
        x = x.clamp(-65504.0, 65504.0)
    return x.to(dtype).view(-1)


def encode_flags(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a two-valued tensor into one bit an element.

    Args:
        x: One-dimensional, a multiple of `FLAG_GROUP` elements.
        low: The value stored as 0, one number.
        high: The value stored as 1, one number.

    Returns:
        Codes (uint8, one-dimensional) and, for every group of `FLAG_GROUP` elements, how many are neither
        (int32).

    Examples:
        >>> x = torch.tensor([0.0, 2.0]).repeat(128)
        >>> codes, others = encode_flags(x, torch.tensor(0.0), torch.tensor(2.0))
        >>> len(codes), others.tolist(), decode_flags(codes, torch.tensor(0.0), torch.tensor(2.0)).equal(x)
        (32, [0], True)
    """
    codes, others = None, None
    for number, piece in enumerate(x.view(-1, 8, FLAG_GROUP // 8).unbind(1)):
        is_high = piece == high
        shifted = is_high.to(torch.int32) << number
        other = (~is_high & (piece != low)).to(torch.int32)
        codes = shifted if codes is None else codes | shifted
        others = other if others is None else others + other
    assert codes is not None
    assert others is not None
    return codes.to(torch.uint8).view(-1), others.sum(dim=1, dtype=torch.int32)


def encode_gate(x: Tensor, low: float, high: float) -> Tensor:
    """Pack into one bit whether an element is strictly between two numbers; NaN is, as torch's gates have it.

    Args:
        x: One-dimensional, a multiple of `FLAG_GROUP` elements.
        low: Closed at and below it.
        high: Closed at and above it.

    Examples:
        >>> encode_gate(torch.tensor([0.0, 2.0]).repeat(128), 0.0, float("inf")).unique().tolist()
        [0, 255]
    """
    codes = None
    for number, piece in enumerate(x.view(-1, 8, FLAG_GROUP // 8).unbind(1)):
        shifted = (~((piece <= low) | (piece >= high))).to(torch.int32) << number
        codes = shifted if codes is None else codes | shifted
    assert codes is not None
    return codes.to(torch.uint8).view(-1)


FLAG_GROUP = 256
"""Elements of a group of flags."""


def decode_flags(codes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the two-valued tensor, in the dtype of its values.

    Args:
        codes: From `encode_flags`.
        low: As given to `encode_flags`.
        high: As given to `encode_flags`.
    """
    packed = codes.view(-1, 1, FLAG_GROUP // 8).to(torch.int32)
    shifts = torch.arange(8, dtype=torch.int32, device=codes.device).view(1, 8, 1)
    return torch.where(((packed >> shifts) & 1) == 1, high, low).view(-1)
