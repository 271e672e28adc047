"""Three ways to run an update rule: as written, over lists, and compiled into one pass over memory.

A *row* is the flat tensors of one parameter: `[param, grad, *state]`, one-dimensional and of equal length.
All rows of a call share device and dtypes. An update rule is a pure function

    update(param, grad, *state, **scalars, **static) -> (new_param, *new_state)

in the arithmetic of `finetune_common.optim.ops`. It sees float32 (float64 for float64 parameters), whatever
the parameter's dtype; scalars are numbers that may change from step to step, static settings choose its
branches. State for which the rule returns no value stays unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from finetune_common.compiled import Compiled, Direct, calls_decide
from finetune_common.optim.ops import Divisor, Scalar, TensorList, Value, assign
from finetune_common.optim.rounding import round_stochastically

__all__ = ["PATHS", "Late", "Row", "Rule", "Update", "advance", "arithmetic_dtype", "run"]

Row: TypeAlias = list[Tensor]
Scalars: TypeAlias = Mapping[str, float]
Late: TypeAlias = Callable[[], Tensor]
RowScalars: TypeAlias = Mapping[str, Sequence[Tensor | Late]]
Update: TypeAlias = Callable[..., tuple[Value, ...]]
"""An update rule (see above): it returns tensors if it is given tensors, else `TensorList`s."""

BLOCK = {"cpu": 2**17}
"""Elements that eager code handles at once, so that temporaries stay in a CPU's caches."""
BLOCK_ELSEWHERE = 2**22
LIST = 2**20
"""Most elements in one list on a CPU."""
SMALL = 2**13
"""Rows of at most this many elements are joined: a compiled call costs as much as 10,000 elements."""
WHAT = "an optimizer with fused=True"
"""Name of compiled code in a warning."""


@dataclass(frozen=True)
class Rule:
    """An update rule with the settings that choose its branches.

    Args:
        update: The pure function (see the module).
        static: Keyword arguments that select branches, as (name, value) pairs.
        maximize: Whether to step along the gradient instead of against it.
        stochastic: Whether bfloat16 parameters are rounded stochastically.
    """

    update: Update
    static: tuple[tuple[str, Hashable], ...] = ()
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
            A function that returns one is called just before its row runs, so that the rule finds the
            gradient in the cache.
    """
    filled = [i for i, row in enumerate(rows) if row[0].numel()]
    if filled:
        PATHS[path](rule, [rows[i] for i in filled], scalars, _chosen(row_scalars, filled))


def _chosen(row_scalars: RowScalars, indices: Iterable[int]) -> dict[str, list[Tensor | Late]]:
    """Choose elements without an index tensor, which would make a GPU wait."""
    return {name: [values[i] for i in indices] for name, values in row_scalars.items()}


def _now(value: Tensor | Late) -> Tensor:
    return value if isinstance(value, Tensor) else value()


def _all_now(row_scalars: RowScalars) -> dict[str, list[Tensor]]:
    return {name: [_now(value) for value in values] for name, values in row_scalars.items()}


def advance(rule: Rule, row: Sequence[Value], scalars: Mapping[str, Scalar], start: int = 0) -> None:
    """Apply a rule once, in place: interpreted in the first two ways, compiled in the third.

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


def _rounded(value: Value, salt: Scalar, start: int) -> Value:
    if isinstance(value, TensorList):
        return TensorList(list(map(round_stochastically, value.tensors, salt.tensors)))
    return round_stochastically(value, salt, start)


def _reference(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    block = BLOCK.get(rows[0][0].device.type, BLOCK_ELSEWHERE)
    for i, row in enumerate(rows):
        all_scalars = {**scalars, **{name: _now(values[i]) for name, values in row_scalars.items()}}
        pieces = zip(*(torch.split(tensor, block) for tensor in row), strict=True)
        for number, piece in enumerate(pieces):
            advance(rule, piece, all_scalars, number * block)


def _foreach(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """Whole lists: on a GPU one per step, since calls are costly; on a CPU as much as the caches hold."""
    order = sorted(range(len(rows)), key=lambda i: rows[i][0].numel())
    sizes = [rows[i][0].numel() for i in order]
    for indices in _lists(sizes, sum(sizes) if calls_decide(rows[0][0].device) else LIST):
        chosen = [order[i] for i in indices]
        chosen_rows, values_now = [rows[i] for i in chosen], _all_now(_chosen(row_scalars, chosen))
        if len(chosen_rows) == 1:
            _reference(rule, chosen_rows, scalars, values_now)
        else:
            columns = [TensorList(column) for column in zip(*chosen_rows, strict=True)]
            lists = {name: TensorList(values) for name, values in values_now.items()}
            advance(rule, columns, {**scalars, **lists})


def _lists(sizes: Sequence[int], limit: int) -> Iterator[range]:
    first, total = 0, 0
    for i, size in enumerate(sizes):
        if i > first and total + size > limit:
            yield range(first, i)
            first, total = i, 0
        total += size
    yield range(first, len(sizes))


def _fused(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    run_fused = _fused_at_once if calls_decide(rows[0][0].device) else _fused_row_by_row
    run_fused(rule, rows, scalars, row_scalars)


def _fused_row_by_row(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """One row per call, of any length, so that little is compiled; small rows are joined."""
    param, grad, *_ = rows[0]
    names = (rule, tuple(scalars), tuple(row_scalars), param.dtype, grad.dtype)
    packed = _packed(rows, scalars)

    @cache  # for the rows of this step: looking up a rule is slow compared with a call
    def compiled(large: bool, joined: bool = False) -> Direct:
        return _direct(*names, large, joined)

    small = [] if rule.stochastic else [i for i, row in enumerate(rows) if row[0].numel() <= SMALL]
    if len(small) < 2 or not compiled(False, joined=True).usable:
        small = []
    joined = set(small)
    for i, row in enumerate(rows):
        if i not in joined:
            step = compiled(_large(row))
            if step.usable:
                step(row, [packed, *[_now(values[i]) for values in row_scalars.values()]])
            else:
                _reference(rule, [row], scalars, _chosen(row_scalars, [i]))
    if small:
        with _joined([rows[i] for i in small]) as (row, sizes):
            chosen = _all_now(_chosen(row_scalars, small)).values()
            stretched = [torch.stack(values).repeat_interleave(sizes) for values in chosen]
            compiled(_large(row), joined=True)(row, [packed, *stretched])


def _large(row: Row) -> bool:
    return row[0].numel() > 2 * SMALL


def _fused_at_once(rule: Rule, rows: Sequence[Row], scalars: Scalars, row_scalars: RowScalars) -> None:
    """One compiled call per step: on a GPU a call costs more than the memory traffic of most tensors.

    Every list of lengths has its own compiled function, since torch gives up on code compiled too often.
    """
    lengths = tuple(row[0].numel() for row in rows)
    key = (rule, tuple(scalars), tuple(row_scalars), rows[0][0].dtype, rows[0][1].dtype, lengths)
    step = _compiled(*key)
    if step.usable:
        stacked = [torch.stack(values) for values in _all_now(row_scalars).values()]
        step(list(rows), _packed(rows, scalars), stacked)
    else:
        _foreach(rule, rows, scalars, row_scalars)


def _packed(rows: Sequence[Row], scalars: Scalars) -> Tensor:
    param = rows[0][0]
    values = [1 / value if isinstance(value, Divisor) else value for value in scalars.values()]
    return torch.tensor(values, dtype=arithmetic_dtype(param.dtype), device=param.device)


@contextmanager
def _joined(rows: Sequence[Row]) -> Generator[tuple[Row, Tensor], None, None]:
    """Lend several rows as one, with their lengths; its values are copied back at the end."""
    sizes = [row[0].numel() for row in rows]
    columns = list(zip(*rows, strict=True))
    joined = [torch.cat(column) for column in columns]
    yield joined, torch.tensor(sizes)
    for column, tensor in zip([columns[0], *columns[2:]], [joined[0], *joined[2:]], strict=True):
        assign(TensorList(column), TensorList(torch.split(tensor, sizes)))


@cache
def _direct(rule: Rule, names: tuple[str, ...], row_names: tuple[str, ...], *apart: Hashable) -> Direct:
    """Compile a rule for a row.

    Dtypes and size classes (`apart`) get separate code: compiled code is laid out (threads) for the first
    row it sees.
    """

    def step(row: Row, others: Sequence[Tensor]) -> None:
        packed, *row_values = others
        scalars = dict(zip(names, packed.unbind(), strict=True))
        advance(rule, row, {**scalars, **dict(zip(row_names, row_values, strict=True))})

    return Direct(step, WHAT, rule.update.__name__)


@cache
def _compiled(
    rule: Rule, names: tuple[str, ...], row_names: tuple[str, ...], *separate: Hashable
) -> Compiled:
    """Compile a rule for a list of rows; dtypes and lengths (`apart`) get code of their own."""

    def step(rows: list[Row], packed: Tensor, stacked: Sequence[Tensor]) -> None:
        scalars = dict(zip(names, packed.unbind(), strict=True))
        for i, row in enumerate(rows):
            values = [column[i] for column in stacked]
            advance(rule, row, {**scalars, **dict(zip(row_names, values, strict=True))})

    return Compiled(step, WHAT, name=rule.update.__name__, dynamic=False)


PATHS = {"reference": _reference, "foreach": _foreach, "fused": _fused}
"""Name → way of running."""
