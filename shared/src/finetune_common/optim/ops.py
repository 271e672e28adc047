"""Arithmetic for update rules: the same expression on one tensor or on a list of tensors.

A rule is written with the operators `+ - * /` and the functions below. Given tensors it runs as written;
given `TensorList`s each operation becomes one `torch._foreach_*` call over the whole list. `+= -= *= /=` on a
value that the rule has computed saves a temporary; a rule never changes its arguments.
"""

from __future__ import annotations

# torch's operations on lists of tensors have no public names:
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Divisor",
    "TensorList",
    "absolute",
    "add_scaled",
    "addcdiv",
    "addcmul",
    "assign",
    "clamp",
    "divide",
    "lerp",
    "maximum",
    "sign",
    "square_root",
]


class Divisor(float):
    """A number that a rule divides by (`divide`): compiled code gets its reciprocal.

    On a CPU a division takes as long as ten multiplications, and would dominate the time of a step.
    """


class TensorList:
    """A list of tensors with arithmetic element by element.

    Args:
        tensors: The tensors; an operation needs lists of equal length and matching shapes.

    Examples:
        >>> a = TensorList([torch.ones(2), torch.zeros(1)])
        >>> (2.0 * a + a).tensors
        [tensor([3., 3.]), tensor([0.])]
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = list(tensors)

    def _binary(self, function: Callable[..., Sequence[Tensor]], other: Scalar) -> TensorList:
        return TensorList(function(self.tensors, self.operand(other)))

    def operand(self, other: Scalar) -> float | list[Tensor]:
        """Return the other side of an operation as torch's list operations take it."""
        if isinstance(other, TensorList):
            return other.tensors
        return [other] * len(self.tensors) if isinstance(other, Tensor) else other

    def __add__(self, other: Scalar) -> TensorList:
        return self._binary(torch._foreach_add, other)

    def __sub__(self, other: Scalar) -> TensorList:
        return self._binary(torch._foreach_sub, other)

    def __mul__(self, other: Scalar) -> TensorList:
        return self._binary(torch._foreach_mul, other)

    def __truediv__(self, other: Scalar) -> TensorList:
        return self._binary(torch._foreach_div, other)

    def _in_place(self, function: Callable[..., object], other: Scalar) -> TensorList:
        function(self.tensors, self.operand(other))
        return self

    def __iadd__(self, other: Scalar) -> TensorList:
        return self._in_place(torch._foreach_add_, other)

    def __isub__(self, other: Scalar) -> TensorList:
        return self._in_place(torch._foreach_sub_, other)

    def __imul__(self, other: Scalar) -> TensorList:
        return self._in_place(torch._foreach_mul_, other)

    def __itruediv__(self, other: Scalar) -> TensorList:
        return self._in_place(torch._foreach_div_, other)

    def __neg__(self) -> TensorList:
        return TensorList(torch._foreach_neg(self.tensors))

    __radd__ = __add__
    __rmul__ = __mul__

    @property
    def dtype(self) -> torch.dtype:
        """The common dtype of the tensors."""
        return self.tensors[0].dtype

    def to(self, dtype: torch.dtype) -> TensorList:
        """Return the tensors in a dtype; tensors that have it already are not copied."""
        return TensorList([tensor.to(dtype) for tensor in self.tensors])


Value: TypeAlias = Any  # a Tensor or a TensorList; all values of a rule are of one kind
Scalar: TypeAlias = Any  # a float, a 0-dimensional tensor, or over lists also a TensorList of such tensors


def divide(value: Value, by: Scalar) -> Value:
    """value / by, in the memory of `value`, which the rule must have computed.

    Args:
        value: The dividend.
        by: A `Divisor`; in compiled code a tensor, which holds its reciprocal.
    """
    if isinstance(by, Tensor):
        value *= by
    else:
        value /= by
    return value


def lerp(start: Value, end: Value, weight: Scalar) -> Value:
    """start + weight · (end - start)."""
    if not isinstance(start, TensorList):
        return torch.lerp(start, end, weight)
    if isinstance(weight, float):
        return TensorList(torch._foreach_lerp(start.tensors, end.tensors, weight))
    return start + (end - start) * weight


def addcmul(start: Value, left: Value, right: Value, scale: Scalar = 1.0) -> Value:
    """start + scale · left · right."""
    if not isinstance(scale, float):
        return start + left * scale * right
    if not isinstance(start, TensorList):
        return torch.addcmul(start, left, right, value=scale)
    return TensorList(torch._foreach_addcmul(start.tensors, left.tensors, right.tensors, scale))


def addcdiv(start: Value, left: Value, right: Value, scale: Scalar = 1.0) -> Value:
    """start + scale · left / right."""
    if not isinstance(scale, float):
        return start + left * scale / right
    if not isinstance(start, TensorList):
        return torch.addcdiv(start, left, right, value=scale)
    return TensorList(torch._foreach_addcdiv(start.tensors, left.tensors, right.tensors, scale))


def add_scaled(start: Value, other: Value, scale: Scalar) -> Value:
    """start + scale · other, rounded once where the hardware can."""
    if not isinstance(scale, float):
        return start + other * scale
    if not isinstance(start, TensorList):
        return torch.add(start, other, alpha=scale)
    return TensorList(torch._foreach_add(start.tensors, other.tensors, alpha=scale))


def absolute(value: Value) -> Value:
    """|value|."""
    return (
        TensorList(torch._foreach_abs(value.tensors)) if isinstance(value, TensorList) else torch.abs(value)
    )


def sign(value: Value) -> Value:
    """-1, 0 or 1."""
    return (
        TensorList(torch._foreach_sign(value.tensors)) if isinstance(value, TensorList) else torch.sign(value)
    )


def square_root(value: Value) -> Value:
    """√value."""
    return (
        TensorList(torch._foreach_sqrt(value.tensors)) if isinstance(value, TensorList) else torch.sqrt(value)
    )


def maximum(left: Value, right: Value) -> Value:
    """The larger of the two; NaN wins."""
    if not isinstance(left, TensorList):
        return torch.maximum(left, right)
    return TensorList(torch._foreach_maximum(left.tensors, right.tensors))


def clamp(value: Value, low: Scalar, high: Scalar) -> Value:
    """The nearest number in [low, high]; NaN stays."""
    if not isinstance(value, TensorList):
        return torch.clamp(value, low, high)
    lower = TensorList(torch._foreach_clamp_min(value.tensors, value.operand(low)))
    return TensorList(torch._foreach_clamp_max(lower.tensors, value.operand(high)))


def assign(target: Value, value: Value) -> None:
    """Write `value` into `target`, rounding to its dtype."""
    if isinstance(target, TensorList):
        torch._foreach_copy_(target.tensors, value.tensors)
    else:
        target.copy_(value)
