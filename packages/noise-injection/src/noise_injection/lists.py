"""A step's kernels over all its tensors: small ones joined, and on a GPU one call for the large ones.

A GPU waits for calls more than for memory, and a model has hundreds of small tensors. What joining needs to
know about lengths is made once and kept, so that nothing is copied from the host at a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune_common.compiled import Compiled, calls_decide
from noise_injection import kernels

__all__ = ["index", "one", "run_all", "small_first", "sums_of_all"]

Item = TypeVar("Item")
Rows = Sequence[list[Tensor]]
Pairs = Sequence[tuple[Tensor, Tensor | None]]

LARGEST = 2**22
"""Elements that are joined at a time."""


def run_all(kernel: kernels.Kernel, rows: Rows, numbers: Tensor, keys: Tensor | None) -> None:
    """Run a kernel over many rows, in place.

    Args:
        kernel: One of `noise_injection.kernels`.
        rows: For each row its tensors, one-dimensional and of one length.
        numbers: One row of numbers each.
        keys: int32, three numbers each; None for a kernel without noise.
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
    """Return items with those that are joined in front: what belongs to them is then a view, not a copy."""
    return sorted(items, key=lambda item: not _is_small(size(item)))


def _is_small(size: int) -> bool:
    return size < kernels.COMPILE_FROM and size < LARGEST


def _by_size(sizes: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Return which rows are joined, in portions, and which are large."""
    joined, total = [[]], 0
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
    """Return an index tensor, which is made once."""
    return torch.tensor(indices, device=device)


@lru_cache(maxsize=64)
def one(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the number one, which is made once."""
    return torch.ones((), dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _layout(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths, the row of each joined element, and its position in the row."""
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
    own_keys = None
    if keys is not None:
        first, second, third = keys.index_select(0, owner).unbind(1)
        own_keys = torch.stack([first + position, second, third])
    columns = _joined(rows)
    compiled = len(owner) >= kernels.COMPILE_FROM and _compiled(kernel).usable
    call = _compiled(kernel) if compiled else kernel
    call(columns, numbers.index_select(0, owner).t(), own_keys)
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for number, whole in enumerate(columns[: kernels.changed_by(kernel)]):
        targets, sources = by_dtype.setdefault(whole.dtype, ([], []))
        targets += [row[number] for row in rows]
        sources += whole.split(sizes)
    for targets, sources in by_dtype.values():
        torch._foreach_copy_(targets, sources)
    return None


@cache
def _compiled(function: Callable[..., Any]) -> Compiled:
    return Compiled(function, "gradient noise", name=f"{function.__name__}_joined", dynamic=True)


@cache
def _together(kernel: kernels.Kernel, lengths: tuple[int, ...]) -> Compiled:
    def together(rows: list[list[Tensor]], numbers: Tensor, keys: Tensor | None) -> None:
        for i, row in enumerate(rows):
            kernel(row, numbers[i], None if keys is None else keys[i])

    return Compiled(together, "gradient noise", name=f"{kernel.__name__}_together", dynamic=False)


def sums_of_all(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """Return `kernels.sums` of many gradients, (count, 1 or 3).

    Args:
        pairs: Each gradient, and what it is compared with: all are, or none.
        dtype: The arithmetic.
    """
    totals: list[Tensor | None] = [None] * len(pairs)
    joined, large = _by_size([gradient.numel() for gradient, _ in pairs])
    for indices in joined:
        for i, total in zip(indices, _sums_of_joined([pairs[i] for i in indices], dtype), strict=True):
            totals[i] = total
    for i, total in zip(large, _sums_of_large([pairs[i] for i in large], dtype), strict=True):
        totals[i] = total
    return torch.stack(totals)  # type: ignore[arg-type]


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
        products = []
        for row in rows:
            vectors = [vector.to(dtype) for vector in row]
            products += [(a * b).sum() for i, a in enumerate(vectors) for b in vectors[i:]]
        return torch.stack(products).view(len(rows), -1)

    return Compiled(products, "gradient noise", name="products_together", dynamic=False)
