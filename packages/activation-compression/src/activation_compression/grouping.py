"""The two kinds of groups of a block's elements that share a minimum and a step: neighbours and columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol, cast

import torch
from torch import Tensor

from activation_compression import kernels
from activation_compression.rotation import matrix, mixing, rotates
from activation_compression.rules import PIECES, WORDS, parts_of

__all__ = ["Columns", "Grouping", "Neighbours"]


class Grouping(Protocol):
    """A way to cut a one-dimensional block into groups."""

    def lengths(self, count: int, bits: int) -> tuple[int, int]:
        """Return the bytes of the codes and the number of groups of `count` elements."""
        ...

    def write(self, block: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, keys: Tensor) -> None:
        """Quantise a block into codes, minima and steps."""
        ...

    def read(
        self, count: int, dtype: torch.dtype, codes: Tensor, low: Tensor, step: Tensor, bits: int
    ) -> Tensor:
        """Return the block of `count` elements, decoded from codes, minima and steps."""
        ...

    def sums(self, values: Tensor, bits: int) -> Tensor:
        """Return the sum of the values over each group, in the order of minima and steps."""
        ...

    def each(self, values: Tensor, count: int, bits: int) -> Tensor:
        """Return the value of its group for each of `count` elements: the transpose of `sums`."""
        ...


@dataclass(frozen=True)
class Neighbours:
    """Groups of elements that lie side by side in memory.

    Attributes:
        size: Elements of a group.
        rotated: Whether groups are rotated before they are rounded, if the size allows it.
    """

    size: int
    rotated: bool = False

    def lengths(self, count: int, bits: int) -> tuple[int, int]:
        """Return the bytes of the codes and the number of groups of `count` elements."""
        groups = -(-count // self.size)
        return groups * self._stored(bits) // parts_of(bits), groups

    def write(self, block: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, keys: Tensor) -> None:
        """Quantise a block into codes, minima and steps."""
        size, turn, mix = self._stored(bits), None, None
        if self._turns:
            turn, mix = _rotation(size, block.device)
        if size != self.size or turn is not None:
            groups = kernels.filled(block, -block.numel() % self.size, turn is not None).view(-1, self.size)
            if turn is not None:
                groups = groups.float() @ turn
            if size != self.size:
                groups = torch.cat([groups, groups[:, -1:].expand(-1, size - self.size)], dim=1)
            block = groups.view(-1)
        kernels.quantize_into(block, codes, low, step, bits, size, keys, mix)

    def read(
        self, count: int, dtype: torch.dtype, codes: Tensor, low: Tensor, step: Tensor, bits: int
    ) -> Tensor:
        """Return the block of `count` elements, decoded from codes, minima and steps."""
        size, turn, mix = self._stored(bits), None, None
        if self._turns:
            turn, mix = _rotation(size, codes.device)
        if mix is not None:
            return kernels.dequantize_rotated(codes, low, step, bits, size, dtype, mix)[:count]
        out = codes.new_empty(count, dtype=dtype)
        if size == self.size and turn is None:
            kernels.dequantize_into(out, codes, low, step, bits, size)
            return out
        filled = out.new_empty(len(low) * size, dtype=dtype if turn is None else torch.float32)
        kernels.dequantize_into(filled, codes, low, step, bits, size)
        if turn is not None and filled.numel() == count and filled.dtype == dtype:
            torch.mm(filled.view(-1, size), turn.t(), out=out.view(-1, size))
            return out
        groups = filled.view(-1, size)[:, : self.size]
        if turn is not None:
            groups = groups @ turn.t()
        out.copy_(groups.reshape(-1)[:count])
        return out

    def sums(self, values: Tensor, bits: int) -> Tensor:
        """Return the sum of the values over each group."""
        filled = torch.nn.functional.pad(values, (0, -len(values) % self.size))
        return filled.view(-1, self.size).sum(dim=1)

    def each(self, values: Tensor, count: int, bits: int) -> Tensor:
        """Return the value of its group for each of `count` elements."""
        return values.unsqueeze(1).expand(-1, self.size).reshape(-1)[:count]

    def _stored(self, bits: int) -> int:
        """Return the group size filled up to whole bytes."""
        parts = parts_of(bits)
        return -(-self.size // parts) * parts

    @property
    def _turns(self) -> bool:
        return self.rotated and rotates(self.size)


@cache
def _rotation(size: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Return the matrix that rotates groups before the kernel, or that for a rotation within the kernel."""
    if device.type == "cpu":
        return matrix(size), None
    return None, mixing(size, device)


@dataclass(frozen=True)
class Columns:
    """Groups of the elements of one column in about `size` neighbouring rows; the last may have fewer rows.

    A feature's range over tokens is often far narrower than the range of all features of one token.

    Attributes:
        size: Approximate rows of a group.
        columns: Elements of a row; blocks hold whole rows.
    """

    size: int
    columns: int

    def lengths(self, count: int, bits: int) -> tuple[int, int]:
        """Return the bytes of the codes and the number of groups of `count` elements."""
        groups, _, rest = self._cut(count)
        bytes_of_rows = (count // self.columns + PIECES - 1) // PIECES * PIECES * bits // 8
        return self.columns * bytes_of_rows, self.columns * (groups + _smaller(rest, 1))

    def equal(self, count: int) -> int | None:
        """Return how many groups of rows `count` elements have; None if the last group has fewer rows.

        Examples:
            >>> Columns(256, 64).equal(512 * 64), Columns(256, 64).equal(520 * 64)
            (2, None)
        """
        groups, _, rest = self._cut(count)
        return None if rest else groups

    def write(self, block: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, keys: Tensor) -> None:
        """Quantise a block into codes, minima and steps."""
        groups, rows, rest = self._cut(block.numel())
        whole = groups * rows * self.columns
        if whole:
            parts = self._parts(block[:whole], codes, low, step, groups, rows, bits)
            kernels.quantize_columns_into(*parts, bits, keys)
        if rest:
            last = block[whole:].view(-1, self.columns)
            last = torch.cat([last, last[-1:].expand(rest - len(last), -1)]).view(-1)
            tail = self._tail(codes, low, step, whole, groups, bits)
            parts = self._parts(last, *tail, 1, rest, bits)
            kernels.quantize_columns_into(*parts, bits, torch.stack((keys[0] + groups, keys[1])))

    def read(
        self, count: int, dtype: torch.dtype, codes: Tensor, low: Tensor, step: Tensor, bits: int
    ) -> Tensor:
        """Return the block of `count` elements, decoded from codes, minima and steps."""
        out = codes.new_empty(count, dtype=dtype)
        groups, rows, rest = self._cut(count)
        whole = groups * rows * self.columns
        if whole:
            parts = self._parts(out[:whole], codes, low, step, groups, rows, bits)
            kernels.dequantize_columns_into(*parts, bits)
        if rest:
            last = out.new_empty(rest * self.columns)
            tail = self._tail(codes, low, step, whole, groups, bits)
            kernels.dequantize_columns_into(*self._parts(last, *tail, 1, rest, bits), bits)
            out[whole:] = last[: count - whole]
        return out

    def sums(self, values: Tensor, bits: int) -> Tensor:
        """Return the sum of the values over each group."""
        groups, rows, _ = self._cut(values.numel())
        whole = groups * rows * self.columns
        sums = values[:whole].view(groups, rows, self.columns).sum(dim=1).view(-1)
        if whole == values.numel():
            return sums
        return torch.cat([sums, values[whole:].view(-1, self.columns).sum(dim=0)])

    def each(self, values: Tensor, count: int, bits: int) -> Tensor:
        """Return the value of its group for each of `count` elements."""
        groups, rows, _ = self._cut(count)
        of_groups = values.view(-1, 1, self.columns)
        whole = of_groups[:groups].expand(-1, rows, -1).reshape(-1)
        if len(whole) == count:
            return whole
        rest = count // self.columns - groups * rows
        return torch.cat([whole, of_groups[groups:].expand(-1, rest, -1).reshape(-1)])

    def _cut(self, count: int) -> tuple[int, int, int]:
        """Return the number of groups, their rows, and the last group's rows, filled up to whole words.

        Numbers may be a compiler's symbols.
        """
        rows = count // self.columns
        groups = _smaller(_larger(1, (2 * rows + self.size) // (2 * self.size)), rows // PIECES)
        each = rows // _larger(1, groups) // PIECES * PIECES  # a word at least, where there is a group
        rest = rows - groups * each
        return groups, each, (rest + PIECES - 1) // PIECES * PIECES

    def _parts(
        self, x: Tensor, codes: Tensor, low: Tensor, step: Tensor, groups: int, rows: int, bits: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a block's elements, codes, minima and steps in the shapes of `rules.encode_columns`."""
        each, narrow = groups * self.columns, rows // PIECES
        words = codes[: rows * each * bits // 8].view(WORDS[bits])
        shape = (self.columns, narrow) if kernels.on_gpu(x.device) else (narrow, self.columns)
        return (
            x.view(groups, PIECES, narrow, self.columns),
            words.view(groups, *shape),
            low[:each].view(groups, self.columns),
            step[:each].view(groups, self.columns),
        )

    def _tail(
        self, codes: Tensor, low: Tensor, step: Tensor, whole: int, groups: int, bits: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        first = groups * self.columns
        return codes[whole * bits // 8 :], low[first:], step[first:]


# for numbers that may be a compiler's symbols; torch declares no types
_larger = cast("Callable[[int, int], int]", torch.sym_max)  # pyright: ignore[reportUnknownMemberType]
_smaller = cast("Callable[[int, int], int]", torch.sym_min)  # pyright: ignore[reportUnknownMemberType]
