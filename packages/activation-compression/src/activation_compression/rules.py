"""The quantiser as pure functions of tensors, computed in float32; `kernels` makes them fast.

A tensor is cut into groups of S elements, and a group into 8 / bits *parts* of S·bits/8 neighbours. Byte j of
a group's codes holds element j of every part, the first part in the lowest bits. So all parts of a group are
read, reduced and written side by side: one pass over memory, on a GPU one kernel. A group may also extend
over rows; then a run of columns takes the place of an element.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune_common.compiled import random_bits, uniform16

__all__ = [
    "PIECES",
    "WORDS",
    "cast",
    "decode",
    "decode_columns",
    "encode",
    "encode_columns",
    "noise16",
    "parts_of",
    "rounded",
    "shifting",
]

TINIEST = 2.0**-126
"""The smallest step: the smallest normal float32."""


def parts_of(bits: int) -> int:
    """Return how many elements share a byte.

    Examples:
        >>> [parts_of(bits) for bits in (1, 2, 4, 8)]
        [8, 4, 2, 1]
    """
    return 8 // bits


def noise16(shape: Sequence[int], number: int, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent numbers in {0, 1, …, 65535}/65536 for every position of a grid.

    Args:
        shape: The grid's shape, two to four lengths.
        number: The grid's number; another number gives other random numbers.
        keys: int32, two numbers.

    Returns:
        Two float32 tensors of that shape.

    Examples:
        >>> u, v = noise16((1000, 128), 0, torch.tensor([1, 2], dtype=torch.int32))
        >>> round(float(u.mean()), 2), round(float((u * v).mean()), 2)
        (0.5, 0.25)
    """
    position, count = None, number
    for length in shape:
        places = torch.arange(length, dtype=torch.int32, device=keys.device)
        position = places if position is None else position.unsqueeze(-1) * length + places
        count = count * length
    assert position is not None
    return uniform16(random_bits(position + count, *keys.unbind()))


def _bfloat16_below(x: Tensor) -> Tensor:
    """Round float32 to bfloat16 towards -∞ (the value stays float32)."""
    raw = x.view(torch.int32)
    return ((raw + ((raw >> 31) & 0xFFFF)) & -65536).view(torch.float32)


def _bfloat16_above(x: Tensor) -> Tensor:
    """Round a non-negative float32 to bfloat16 towards +∞ (the value stays float32)."""
    return ((x.view(torch.int32) + 0xFFFF) & -65536).view(torch.float32)


def shifting(bits: int) -> torch.dtype:
    """Return the integer dtype in which codes with so many bits together are shifted."""
    return torch.int64 if bits > 32 else torch.int32


def rounded(
    pieces: Sequence[Tensor], bits: int, keys: Tensor, axis: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Round the pieces of groups together; a piece is (groups, neighbours), or has columns as a third axis.

    Args:
        pieces: Float32 tensors.
        bits: 1, 2, 4 or 8.
        keys: int32, two numbers.
        axis: The axis of a group's elements.

    Returns:
        The codes of all pieces in one integer, the first in the lowest bits; m and s per group and column.
    """
    eager = not torch.compiler.is_compiling()  # asked first: a compiled kernel must not depend on the size
    if eager and len(pieces) > 2 and len(pieces) * pieces[0].numel() <= FEW:
        return _rounded_at_once(torch.stack(list(pieces)), bits, keys, axis)
    levels = 2**bits - 1
    low, high = pieces[0], pieces[0]
    for piece in pieces[1:]:
        low, high = torch.minimum(low, piece), torch.maximum(high, piece)
    low = _bfloat16_below(low.amin(dim=axis, keepdim=True))
    width = high.amax(dim=axis, keepdim=True) - low
    step = _bfloat16_above((width / levels).clamp(min=TINIEST))
    inverse = 1.0 / step
    codes, noise, integers = None, (), shifting(bits * len(pieces))
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            noise = noise16(piece.shape, number // 2, keys)
        q = torch.floor((piece - low) * inverse + noise[number % 2]).clamp(max=levels).to(integers)
        shifted = (q & levels) << (bits * number)
        codes = shifted if codes is None else codes | shifted
    assert codes is not None
    step = torch.where(width < torch.inf, step, torch.nan)
    return codes, low.to(torch.bfloat16), step.to(torch.bfloat16)


FEW = 2**15
"""Most elements to round at once: fewer operations, but more memory."""


def _rounded_at_once(pieces: Tensor, bits: int, keys: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same as `rounded` of stacked pieces, in fewer operations: each takes its time."""
    count, levels, integers = len(pieces), 2**bits - 1, shifting(bits * len(pieces))
    around = (0, axis + 1)
    low = _bfloat16_below(pieces.amin(dim=around, keepdim=True))
    width = pieces.amax(dim=around, keepdim=True) - low
    step = _bfloat16_above((width / levels).clamp(min=TINIEST))
    noise = torch.stack(noise16(((count + 1) // 2, *pieces.shape[1:]), 0, keys), dim=1)
    noise = noise.flatten(0, 1)[:count]
    q = torch.floor((pieces - low) * (1.0 / step) + noise).clamp(max=levels).to(integers) & levels
    shifts = bits * torch.arange(count, dtype=torch.int32, device=keys.device)
    codes = (q << shifts.view(-1, *[1] * (q.ndim - 1))).sum(dim=0, dtype=integers)  # bits do not overlap
    step = torch.where(width < torch.inf, step, torch.nan)
    return codes, low.squeeze(0).to(torch.bfloat16), step.squeeze(0).to(torch.bfloat16)


def encode(x: Tensor, bits: int, size: int, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise groups with stochastic rounding; E[decode(encode(x))] = x.

        m = ⌊min x⌋    s = ⌈(max x - m) / (2ᵇ - 1)⌉    q = ⌊(x - m) / s + u⌋,  u ~ U[0, 1)

    m is rounded down and s up to bfloat16, so that no element is clamped. If an element of a group is not
    finite, s is NaN, and the whole group is decoded as NaN.

    Args:
        x: One-dimensional, floating, a multiple of `size` elements.
        bits: 1, 2, 4 or 8.
        size: Elements of a group, a multiple of 8 / bits.
        keys: int32, two numbers, which determine the random numbers.

    Returns:
        Codes (uint8, one-dimensional), m and s (bfloat16, one for each group).

    Examples:
        >>> keys = torch.tensor([3, 4], dtype=torch.int32)
        >>> codes, low, step = encode(torch.arange(8.0), 4, 8, keys)
        >>> codes.shape, low.item(), step.item() >= 7 / 15
        (torch.Size([4]), 0.0, True)
    """
    parts = parts_of(bits)
    pieces = [part.float() for part in x.view(-1, parts, size // parts).unbind(1)]
    codes, low, step = rounded(pieces, bits, keys)
    return codes.to(torch.uint8).view(-1), low.view(-1), step.view(-1)


def decode(codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int, dtype: torch.dtype) -> Tensor:
    """Return m + q·s of every element.

    Args:
        codes: From `encode`.
        low: From `encode`.
        step: From `encode`.
        bits: As given to `encode`.
        size: As given to `encode`.
        dtype: Dtype of the result. For float16, values are clamped to its range.

    Examples:
        >>> keys = torch.tensor([3, 4], dtype=torch.int32)
        >>> decode(*encode(torch.tensor([0.0, 0.0, 15.0, 15.0]), 4, 4, keys), 4, 4, torch.float32)
        tensor([ 0.,  0., 15., 15.])
    """
    parts = parts_of(bits)
    packed = codes.view(-1, size // parts)
    return _decoded(packed, low.view(-1, 1, 1), step.view(-1, 1, 1), bits, parts, dtype).view(-1)


PIECES = 8
"""Pieces of a group whose codes share words, if groups extend over rows or are rotated."""
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bits → the integer dtype that holds a code of each piece."""


def encode_columns(
    x: Tensor, bits: int, keys: Tensor, columns_first: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise groups that extend over rows: the elements of one column in neighbouring rows.

    Args:
        x: (groups, `PIECES`, rows, columns), floating; a group is `x[g, :, :, c]`.
        bits: 1, 2, 4 or 8.
        keys: int32, two numbers.
        columns_first: Whether the codes of one group lie side by side. A GPU then needs one kernel; a CPU
            is faster without.

    Returns:
        Codes (`WORDS[bits]`, (groups, rows, columns) or (groups, columns, rows)), m and s (bfloat16,
        (groups, columns)).

    Examples:
        >>> x = torch.tensor([[0.0, 100.0], [15.0, 1600.0]]).repeat(4, 1).view(1, 8, 1, 2)
        >>> encoded = encode_columns(x, 4, torch.tensor([3, 4], dtype=torch.int32))
        >>> decode_columns(*encoded, 4, torch.float32).equal(x)
        True
    """
    axis = 2 if columns_first else 1
    parts = [part.float() for part in x.unbind(1)]
    parts = [part.transpose(1, 2) for part in parts] if columns_first else parts
    codes, low, step = rounded(parts, bits, keys, axis)
    return codes.to(WORDS[bits]).contiguous(), low.squeeze(axis), step.squeeze(axis)


def decode_columns(
    codes: Tensor, low: Tensor, step: Tensor, bits: int, dtype: torch.dtype, columns_first: bool = False
) -> Tensor:
    """Return m + q·s of every element, from the results of `encode_columns` and in the shape of its `x`."""
    codes = codes.transpose(1, 2) if columns_first else codes
    return _decoded(codes, low[:, None, None], step[:, None, None], bits, PIECES, dtype)


def _decoded(codes: Tensor, low: Tensor, step: Tensor, bits: int, pieces: int, dtype: torch.dtype) -> Tensor:
    shape = (1, pieces) + (1,) * (codes.ndim - 1)
    shifts = bits * torch.arange(pieces, dtype=torch.int32, device=codes.device).view(shape)
    q = (codes.unsqueeze(1).to(shifting(bits * pieces)) >> shifts) & (2**bits - 1)
    return cast(q.float() * step.float() + low.float(), dtype)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 values in another dtype; for float16 they are clamped to its range."""
    return (x.clamp(-65504.0, 65504.0) if dtype == torch.float16 else x).to(dtype)
