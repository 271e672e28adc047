"""Three ways to run an update rule: as written, over lists, and compiled into one pass over memory.

A *row* is the flat tensors of one parameter: `[param, grad, *state]`, one-dimensional and of equal length.
All rows of a call share device and dtypes. An update rule is a pure function

    update(param, grad, *state, **scalars, **static) -> (new_param, *new_state)

in the arithmetic of `finetune_common.optim.ops`. It sees float32 (float64 for float64 parameters), whatever
the parameter's dtype; scalars are numbers that may change from step to step, static settings choose its
branches. Values beyond the returned ones leave the remaining state as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from finetune_common.compiled import Compiled, calls_decide
from finetune_common.optim.ops import Divisor, TensorList, assign
from finetune_common.optim.rounding import round_stochastically

__all__ = ["PATHS", "Row", "Rule", "advance", "arithmetic_dtype", "run"]

Row = list[Tensor]
Scalars = Mapping[str, float]
RowScalars = Mapping[str, Sequence[Tensor]]

BLOCK = {"cpu": 2**17}
"""Elements that eager code handles at a time: temporaries stay in the caches of a CPU."""
BLOCK_ELSEWHERE = 2**22
LIST = 2**20
"""Elements that one list holds on a CPU."""
SMALL = 2**13
"""Rows of at most this many elements are joined: a compiled call costs as much as 10,000 elements."""
TOGETHER = 4
"""Rows of one length in a compiled call."""


@dataclass(frozen=True)
class Rule:
    """An update rule with the settings that choose its branches.

    Args:
        update: The pure function (see the module).
        static: Keyword arguments that select branches, as (name, value) pairs.
        maximize: Whether to step along the gradient instead of against it.
        stochastic: Whether bfloat16 parameters are rounded stochastically.
    """

    update: Callable[..., tuple[Any, ...]]
    static: tuple[tuple[str, Any], ...] = ()
    maximize: bool = False
    stochastic: bool = False


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter's state and arithmetic: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def run(path: str, rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """Apply a rule to rows, in place.

    Args:
        path: One of `PATHS`: "reference", "foreach" or "fused".
        rule: The update rule.
        rows: The rows; see the module.
        scalars: Numbers for all rows, by the rule's argument names.
        row_scalars: Numbers that differ from row to row (norms, clipping coefficients), 0-dimensional tensors
            on the rows' device, by the rule's argument names. With a stochastic rule `salt` (int32) is one.
    """
    own = {name: [*values] for name, values in row_scalars.items()}
    kept = [i for i, row in enumerate(rows) if row[0].numel()]
    if kept:
        PATHS[path](rule, [rows[i] for i in kept], scalars, _chosen(own, kept))


def _chosen(row_scalars: RowScalars, indices: Iterable[int]) -> dict[str, list[Tensor]]:
    """Choose without an index tensor, for which a GPU would wait."""
    return {name: [values[i] for i in indices] for name, values in row_scalars.items()}


def advance(rule: Rule, row: Sequence[Any], scalars: Mapping[str, Any], start: int = 0) -> None:
    """Apply a rule once, in place: what is interpreted in the first two ways and compiled in the third.

    Args:
        rule: The update rule.
        row: `[param, grad, *state]`: tensors, or a `TensorList` each.
        scalars: Floats or 0-dimensional tensors by the rule's argument names, `salt` with a stochastic rule.
        start: Position of the row's first element in its parameter.
    """
    param, grad, *state = row
    scalars = dict(scalars)
    salt = scalars.pop("salt", None)
    dtype = arithmetic_dtype(param.dtype)
    grad = grad.to(dtype)
    new = rule.update(
        param.to(dtype), -grad if rule.maximize else grad, *state, **scalars, **dict(rule.static)
    )
    assign(param, new[0] if salt is None else _rounded(new[0], salt, start))
    for old, value in zip(state, new[1:], strict=False):
        assign(old, value)


def _rounded(value: Any, salt: Any, start: int) -> Any:
    if isinstance(value, TensorList):
        return TensorList(list(map(round_stochastically, value.tensors, salt.tensors)))
    return round_stochastically(value, salt, start)


def _reference(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    block = BLOCK.get(rows[0][0].device.type, BLOCK_ELSEWHERE)
    for i, row in enumerate(rows):
        own = {name: values[i] for name, values in row_scalars.items()}
        pieces = zip(*(tensor.split(block) for tensor in row), strict=True)
        for number, piece in enumerate(pieces):
            advance(rule, piece, {**scalars, **own}, number * block)


def _foreach(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """Whole lists: on a GPU one a step, since calls decide; on a CPU what stays in the caches."""
    order = sorted(range(len(rows)), key=lambda i: rows[i][0].numel())
    sizes = [rows[i][0].numel() for i in order]
    for indices in _lists(sizes, sum(sizes) if calls_decide(rows[0][0].device) else LIST):
        chosen = [order[i] for i in indices]
        some, own = [rows[i] for i in chosen], _chosen(row_scalars, chosen)
        if len(some) == 1:
            _reference(rule, some, scalars, own)
        else:
            columns = [TensorList(column) for column in zip(*some, strict=True)]
            advance(rule, columns, {**scalars, **{name: TensorList(values) for name, values in own.items()}})


def _lists(sizes: Sequence[int], limit: int) -> Iterator[range]:
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > limit:
            yield range(first, i)
            first, total = i, 0
        total += size
    yield range(first, len(sizes))


def _fused(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    way = _fused_at_once if calls_decide(rows[0][0].device) else _fused_by_length
    way(rule, rows, scalars, row_scalars)


def _fused_by_length(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """A few rows of one length a call, whatever the length: little to compile, and few calls."""
    names, packed = (rule, tuple(scalars), tuple(row_scalars)), _packed(rows, scalars)

    def compiled(row: Row, count: int) -> Compiled:
        return _compiled(*names, row[0].dtype, row[1].dtype, count, row[0].numel() > 2 * SMALL, dynamic=True)

    small = [] if rule.stochastic else [i for i, row in enumerate(rows) if row[0].numel() <= SMALL]
    if len(small) < 2 or not compiled(rows[small[0]], 1).usable:
        small = []
    for indices in _alike(sorted(set(range(len(rows))) - set(small)), rows):
        some, step = [rows[i] for i in indices], compiled(rows[indices[0]], len(indices))
        if step.usable:
            step(some, packed, [*_chosen(row_scalars, indices).values()])
        else:
            _reference(rule, some, scalars, _chosen(row_scalars, indices))
    if small:
        with _joined([rows[i] for i in small]) as (row, sizes):
            chosen = _chosen(row_scalars, small).values()
            own = [[torch.stack(values).repeat_interleave(sizes)] for values in chosen]
            compiled(row, 1)([row], packed, own)


def _fused_at_once(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """One compiled call a step: on a GPU a call costs more than the memory traffic of most tensors.

    Every list of lengths has compiled code of its own: torch gives up on code that is compiled too often.
    """
    lengths = tuple(row[0].numel() for row in rows)
    key = (rule, tuple(scalars), tuple(row_scalars), rows[0][0].dtype, rows[0][1].dtype, lengths)
    step = _compiled(*key, dynamic=False)
    if step.usable:
        step(list(rows), _packed(rows, scalars), [torch.stack([*values]) for values in row_scalars.values()])
    else:
        _foreach(rule, rows, scalars, row_scalars)


def _packed(rows: Sequence[Row], scalars: Scalars) -> Tensor:
    param = rows[0][0]
    values = [1 / value if isinstance(value, Divisor) else value for value in scalars.values()]
    return torch.tensor(values, dtype=arithmetic_dtype(param.dtype), device=param.device)


def _alike(indices: Iterable[int], rows: Sequence[Row]) -> Iterator[list[int]]:
    """Split indices into `TOGETHER` rows of one length each, and single ones where there are fewer."""
    by_length: dict[int, list[int]] = {}
    for i in indices:
        by_length.setdefault(rows[i][0].numel(), []).append(i)
    for equal in by_length.values():
        whole = len(equal) - len(equal) % TOGETHER
        yield from (equal[i : i + TOGETHER] for i in range(0, whole, TOGETHER))
        yield from ([i] for i in equal[whole:])


@contextmanager
def _joined(rows: Sequence[Row]) -> Iterator[tuple[Row, Tensor]]:
    """Lend several rows as one, with their lengths; what it holds at the end goes back into them."""
    sizes = [row[0].numel() for row in rows]
    columns = list(zip(*rows, strict=True))
    joined = [torch.cat(column) for column in columns]
    yield joined, torch.tensor(sizes)
    for column, tensor in zip([columns[0], *columns[2:]], [joined[0], *joined[2:]], strict=True):
        torch._foreach_copy_(column, tensor.split(sizes))


@cache
def _compiled(
    rule: Rule, names: tuple[str, ...], row_names: tuple[str, ...], *kept_apart: Any, dynamic: bool
) -> Compiled:
    """Compile a rule for a list of rows.

    Dtypes, numbers of rows and size classes are kept apart: compiled code is laid out (threads) for the
    first rows it meets.
    """

    def step(rows: list[Row], packed: Tensor, own: Sequence[Sequence[Tensor] | Tensor]) -> None:
        scalars = dict(zip(names, packed.unbind(), strict=True))
        for i, row in enumerate(rows):
            values = [given[i] for given in own]
            advance(rule, row, {**scalars, **dict(zip(row_names, values, strict=True))})

    return Compiled(step, "an optimizer with fused=True", name=rule.update.__name__, dynamic=dynamic)


PATHS = {"reference": _reference, "foreach": _foreach, "fused": _fused}
"""Name → way of running."""
