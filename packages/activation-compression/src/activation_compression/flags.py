"""Two-valued tensors in one bit per element, without loss, as pure functions of tensors.

As in `rules`, byte j of a group's codes holds element j of each of eight parts of neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["FLAG_GROUP", "decode_bits", "decode_flags", "encode_bits", "encode_flags", "encode_gate"]

FLAG_GROUP = 256
"""Elements of a group of flags."""


def encode_flags(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Pack a two-valued tensor into one bit per element.

    Args:
        x: One-dimensional, a multiple of `FLAG_GROUP` elements.
        low: The value stored as 0, one number.
        high: The value stored as 1, one number.

    Returns:
        Codes (uint8, one-dimensional), and how many elements of each group of `FLAG_GROUP` are neither value
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
    """Pack into one bit whether an element is strictly between two numbers; NaN counts, as in torch's gates.

    Args:
        x: One-dimensional, a multiple of `FLAG_GROUP` elements.
        low: The gate is closed at and below it.
        high: The gate is closed at and above it.

    Examples:
        >>> encode_gate(torch.tensor([0.0, 2.0]).repeat(128), 0.0, float("inf")).unique().tolist()
        [0, 255]
    """
    return encode_bits(~((x <= low) | (x >= high)))


def encode_bits(x: Tensor) -> Tensor:
    """Pack zeros and ones into one bit each.

    Args:
        x: One-dimensional, a multiple of `FLAG_GROUP` elements; uint8, since a CPU's compiler loads bools one
            by one.

    Examples:
        >>> encode_bits(torch.tensor([0, 1], dtype=torch.uint8).repeat(128)).unique().tolist()
        [0, 255]
    """
    codes = None
    for number, piece in enumerate(x.view(-1, 8, FLAG_GROUP // 8).unbind(1)):
        shifted = piece.to(torch.int32) << number
        codes = shifted if codes is None else codes | shifted
    assert codes is not None
    return codes.to(torch.uint8).view(-1)


def decode_bits(codes: Tensor) -> Tensor:
    """Return the zeros and ones of `encode_bits`, uint8.

    Examples:
        >>> x = torch.arange(256, dtype=torch.uint8) // 3 % 2
        >>> decode_bits(encode_bits(x)).equal(x)
        True
    """
    packed = codes.view(-1, 1, FLAG_GROUP // 8).to(torch.int32)
    shifts = torch.arange(8, dtype=torch.int32, device=codes.device).view(1, 8, 1)
    return ((packed >> shifts) & 1).to(torch.uint8).view(-1)


def decode_flags(codes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the two-valued tensor, in the dtype of its values.

    Args:
        codes: From `encode_flags`.
        low: As given to `encode_flags`.
        high: As given to `encode_flags`.
    """
    return torch.where(decode_bits(codes) == 1, high, low)
