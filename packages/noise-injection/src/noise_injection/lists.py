"""Run a step's kernels over all tensors: small ones are joined; on a GPU the large ones share one call.

A GPU waits for calls more than for memory, and a model has hundreds of small tensors. The tables of lengths
that joining needs are made once and kept, so that no step copies anything from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from finetune_common.compiled import Compiled, calls_decide
from noise_injection import kernels

__all__ = ["index", "run_all", "small_first", "sums_of_all", "unit_scale"]

Item = TypeVar("Item")
Rows = Sequence[list[Tensor]]
Pairs = Sequence[tuple[Tensor, Tensor | None]]

LARGEST = 2**22
"""Elements that are joined at a time."""


def run_all(kernel: kernels.Kernel, rows: Rows, numbers: Tensor, keys: Tensor | None) -> None:
    """Run a kernel over many rows, in place.

    Args:
        kernel: One of `noise_injection.kernels`.
        rows: The tensors of each row, one-dimensional and of equal length.
        numbers: The numbers of each row.
        keys: int32, three for each row; None for a kernel without noise.
    """
    joined, large = _by_size([row[0].numel() for row in rows])
    for indices in joined:
        _run_joined(kernel, [rows[i] for i in indices], *_rows_of(indices, numbers, keys))
    if len(large) > 1 and calls_decide(rows[large[0]][0].device):
        together = _together(kernel, tuple(rows[i][0].numel() for i in large))
        if together.usable:
            return together([[*rows[i]] for i in large], *_rows_of(large, numbers, keys))
    for i in large:
        kernels.run(kernel, rows[i], numbers[i], None if keys is None else keys[i])
    return None


def small_first(items: Iterable[Item], size: Callable[[Item], int]) -> list[Item]:
    """Return items with those to be joined first: their numbers and keys are then a view, not a copy."""
    return sorted(items, key=lambda item: not _is_small(size(item)))


def _is_small(size: int) -> bool:
    return size < kernels.COMPILE_FROM and size < LARGEST


def _by_size(sizes: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Return the indices of rows to join, in portions, and of large rows."""
    joined: list[list[int]] = [[]]
    total = 0
    for i, size in enumerate(sizes):
        if _is_small(size):
            if total + size > LARGEST:
                joined.append([])
                total = 0
            joined[-1].append(i)
            total += size
    small = {i for portion in joined for i in portion}
    return [portion for portion in joined if portion], [i for i in range(len(sizes)) if i not in small]


def _rows_of(indices: Sequence[int], numbers: Tensor, keys: Tensor | None) -> tuple[Tensor, Tensor | None]:
    first, last = indices[0], indices[-1]
    if last - first == len(indices) - 1:
        return numbers[first : last + 1], None if keys is None else keys[first : last + 1]
    chosen = index(tuple(indices), numbers.device)
    return numbers.index_select(0, chosen), None if keys is None else keys.index_select(0, chosen)


@lru_cache(maxsize=64)
def index(indices: tuple[int, ...], device: torch.device) -> Tensor:
    """Return an index tensor, made once and kept."""
    return torch.tensor(indices, device=device)


@lru_cache(maxsize=64)
def unit_scale(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the number 1 as a tensor, made once and kept."""
    return torch.ones((), dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return lengths, the row of each joined element, and its position in the row."""
    lengths = torch.tensor(sizes)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), lengths)
    position = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths)[owner]
    return lengths.to(device), owner.to(device), position.to(device, torch.int32)


def _joined(rows: Sequence[list[Tensor]]) -> list[Tensor]:
    columns = [[row[number] for row in rows] for number in range(len(rows[0]))]
    return [torch.cat(column) if len(column) > 1 else column[0] for column in columns]


def _run_joined(kernel: kernels.Kernel, rows: Rows, numbers: Tensor, keys: Tensor | None) -> None:
    if len(rows) == 1:
        return kernels.run(kernel, rows[0], numbers[0], None if keys is None else keys[0])
    sizes = tuple([row[0].numel() for row in rows])
    if not sum(sizes):
        return None
    _, owner, position = _layout(sizes, rows[0][0].device)
    element_keys = None
    if keys is not None:
        first, second, third = keys.index_select(0, owner).unbind(1)
        element_keys = torch.stack([first + position, second, third])
    columns = _joined(rows)
    compiled = len(owner) >= kernels.COMPILE_FROM and _compiled(kernel).usable
    call = _compiled(kernel) if compiled else kernel
    call(columns, numbers.index_select(0, owner).t(), element_keys)
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for number, column in enumerate(columns[: kernels.changed_by(kernel)]):
        targets, sources = by_dtype.setdefault(column.dtype, ([], []))
        targets += [row[number] for row in rows]
        sources += torch.split(column, [*sizes])
    for targets, sources in by_dtype.values():
        # The only call of torch that copies a list of tensors at once.
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    return None


@cache
def _compiled(kernel: kernels.Kernel) -> Compiled:
    return Compiled(kernel, "gradient noise", name=f"{kernel.__name__}_joined", dynamic=True)


@cache
def _together(kernel: kernels.Kernel, lengths: tuple[int, ...]) -> Compiled:
    def together(rows: list[list[Tensor]], numbers: Tensor, keys: Tensor | None) -> None:
        for i, row in enumerate(rows):
            kernel(row, numbers[i], None if keys is None else keys[i])

    return Compiled(together, "gradient noise", name=f"{kernel.__name__}_together", dynamic=False)


def sums_of_all(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """Return `kernels.sums` of many gradients, (count, 1 or 3).

    Args:
        pairs: Each gradient, and the mean that it is compared with; None for all of them, or for none.
        dtype: The arithmetic.
    """
    totals: dict[int, Tensor] = {}
    joined, large = _by_size([gradient.numel() for gradient, _ in pairs])
    for indices in joined:
        totals |= zip(indices, _sums_of_joined([pairs[i] for i in indices], dtype), strict=True)
    totals |= zip(large, _sums_of_large([pairs[i] for i in large], dtype), strict=True)
    return torch.stack([totals[i] for i in range(len(pairs))])


def _sums_of_joined(pairs: Pairs, dtype: torch.dtype) -> Iterator[Tensor]:
    sizes = tuple(gradient.numel() for gradient, _ in pairs)
    rows = [[tensor for tensor in pair if tensor is not None] for pair in pairs]
    vectors = [column.double() for column in _joined(rows)]
    products = torch.stack([a * b for i, a in enumerate(vectors) for b in vectors[i:]], dim=1)
    lengths, *_ = _layout(sizes, pairs[0][0].device)
    sums = torch.segment_reduce(products, "sum", lengths=lengths, unsafe=True)
    yield from sums.to(dtype).unbind()


def _sums_of_large(pairs: Pairs, dtype: torch.dtype) -> Iterator[Tensor]:
    if len(pairs) > 1 and calls_decide(pairs[0][0].device):
        together = _products_together(tuple(gradient.numel() for gradient, _ in pairs), dtype)
        if together.usable:
            yield from together([[t for t in pair if t is not None] for pair in pairs]).unbind()
            return
    for gradient, compared in pairs:
        yield kernels.sums(gradient, compared, dtype)


@cache
def _products_together(lengths: tuple[int, ...], dtype: torch.dtype) -> Compiled:
    def products(rows: list[list[Tensor]]) -> Tensor:
        sums: list[Tensor] = []
        for row in rows:
            vectors = [vector.to(dtype) for vector in row]
            sums += [(a * b).sum() for i, a in enumerate(vectors) for b in vectors[i:]]
        return torch.stack(sums).view(len(rows), -1)

    return Compiled(products, "gradient noise", name="products_together", dynamic=False)
