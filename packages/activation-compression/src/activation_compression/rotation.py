"""Rounding after a rotation, which spreads an outlier over its group, so that the group's range is narrower.

    y = H D x / √S,   H[i, j] = (-1)^⟨i, j⟩,   D = diag(signs)

The rotation is orthonormal and undone after decoding, so that E[x̂] = x as before, at the same bytes, and the
error ‖x̂ - x‖ equals that of y. It helps where backward reads x by a linear map or sums over the group, as in
a product or a normalisation. It makes sparse groups, such as probabilities, worse.

A group is cut into pieces whose codes share words. H is a product of two: butterflies between the pieces, and
sums over the few elements of a piece. So a GPU still reads, reduces and writes everything in one pass. A CPU
has fewer registers and fast matrix products: it multiplies by the whole matrix first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from activation_compression.rules import PIECES, WORDS, cast, rounded, shifting

__all__ = ["decode", "encode", "matrix", "mixing", "rotates"]


def rotates(size: int) -> bool:
    """Return whether groups of this size can be rotated: a power of two that fills words.

    Examples:
        >>> rotates(128), rotates(96)
        (True, False)
    """
    return size & (size - 1) == 0 and size % PIECES == 0


def encode(x: Tensor, bits: int, size: int, keys: Tensor, mix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise groups after a rotation; E[decode(encode(x))] = x.

    Args:
        x: One-dimensional, floating, a multiple of `size` elements.
        bits: 1, 2, 4 or 8.
        size: Elements of a group: a power of two (`rotates`).
        keys: int32, two numbers.
        mix: `mixing(size)`.

    Returns:
        Codes (`WORDS[bits]`, (groups, size / `PIECES`)), m and s (bfloat16, one for each group).

    Examples:
        >>> x = torch.zeros(128).index_fill(0, torch.tensor(5), 128**0.5)
        >>> mix = mixing(128)
        >>> codes, low, step = encode(x, 4, 128, torch.tensor([3, 4], dtype=torch.int32), mix)
        >>> low.item(), bool((decode(codes, low, step, 4, x.dtype, mix).view(-1) - x).abs().max() < 0.1)
        (-1.0, True)
    """
    parts = [_mixed(part.float(), mix[0]) for part in x.view(-1, PIECES, size // PIECES).unbind(1)]
    codes, low, step = rounded(_butterflies(_signed(parts)), bits, keys)
    return codes.to(WORDS[bits]), low.view(-1), step.view(-1)


def decode(codes: Tensor, low: Tensor, step: Tensor, bits: int, dtype: torch.dtype, mix: Tensor) -> Tensor:
    """Return D H (m + q·s) / √S, (groups, pieces, neighbours); arguments as for `encode`."""
    levels, codes = 2**bits - 1, codes.to(shifting(bits * PIECES))
    s, m = step.float().view(-1, 1), low.float().view(-1, 1)
    values = [((codes >> (bits * number)) & levels).float() * s + m for number in range(PIECES)]
    turned = [
        _signed(_butterflies([_mixed(value, columns) for value in values]))
        for columns in mix[1].chunk(WRITTEN_APART // PIECES, dim=1)
    ]
    parts = [cast(part, dtype) for pair in zip(*turned, strict=True) for part in pair]
    return torch.stack(parts, dim=1)


WRITTEN_APART = 16
"""Parts of a group that are written one by one; fewer, and the compiler recomputes them for each element."""


def _sign(number: int) -> int:
    """Return a sign of the Rudin-Shapiro sequence, whose transform is as flat as that of random signs."""
    return 1 - 2 * ((number & number >> 1).bit_count() % 2)


def _signed(pieces: Sequence[Tensor]) -> list[Tensor]:
    return [piece if _sign(number) > 0 else -piece for number, piece in enumerate(pieces)]


def _butterflies(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Return the product of H with a list of pieces."""
    turned, reach = list(pieces), 1
    while reach < len(turned):
        turned = [
            turned[i ^ reach] - turned[i] if i & reach else turned[i] + turned[i ^ reach]
            for i in range(len(turned))
        ]
        reach *= 2
    return turned


def _mixed(piece: Tensor, mix: Tensor) -> Tensor:
    """Return Σ_k piece[:, k] mix[k, :], written out, so that it becomes part of the kernel around it."""
    terms = [piece[:, k : k + 1] * row for k, row in enumerate(mix.unbind())]
    return reduce(torch.add, (reduce(torch.add, terms[k : k + FEW]) for k in range(0, len(terms), FEW)))


FEW = 4
"""Terms that are added up before their sums are."""


def mixing(size: int, device: torch.device | None = None) -> Tensor:
    """Return the matrix that rotates the elements of a piece, D H / √S, and its transpose, which undoes it.

    Examples:
        >>> mixing(64).shape, mixing(64).mul(8)[0, 0].tolist()
        (torch.Size([2, 8, 8]), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    columns = range(size // PIECES)
    rows = [[_sign(k) * (1 - 2 * ((k & j).bit_count() % 2)) for j in columns] for k in columns]
    turn = torch.tensor(rows, dtype=torch.float32, device=device) / size**0.5
    return torch.stack([turn, turn.t()])


def matrix(size: int, device: torch.device | None = None) -> Tensor:
    """Return the whole rotation: a row x becomes x @ matrix, and y @ matrix.t() is x again.

    Examples:
        >>> turn = matrix(64)
        >>> bool(torch.allclose(turn @ turn.t(), torch.eye(64), atol=1e-6))
        True
    """
    rows = _butterflies(_signed(torch.eye(PIECES, device=device).unbind()))
    return torch.kron(torch.stack(rows, dim=1), mixing(size, device)[0])
