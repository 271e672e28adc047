"""A tensor's elements as one run of memory, and how to restore its shape and strides."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import gcd

from torch import Tensor, nn, strided
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "Layout",
    "as_block",
    "fills_memory",
    "has_memory",
    "is_plain",
    "parts",
    "reading_waits",
    "sample",
    "storage_id",
    "viewed",
]


@dataclass(frozen=True)
class Layout:
    """Where the elements of a tensor are in a block.

    Attributes:
        shape: The tensor's shape.
        distinct: The shape without repetition: 1 where the tensor was expanded.
        strides: Strides in the block, for `distinct`.
        offset: Place of its first element in the block.
    """

    shape: tuple[int, ...]
    distinct: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def view(self, block: Tensor) -> Tensor:
        """Return the tensor that a block holds."""
        return block.as_strided(self.distinct, self.strides, self.offset).expand(self.shape)


def fills_memory(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements fill one stretch of memory, in any order, without gaps or overlaps."""
    expected = 1
    for stride, length in sorted((s, n) for s, n in zip(strides, shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= length
    return True


def as_block(tensor: Tensor) -> tuple[Tensor, Layout, Hashable]:
    """Return a tensor's distinct elements as a one-dimensional tensor, without a copy where possible.

    Args:
        tensor: Strided, without gradient history.

    Returns:
        The block, the tensor's layout on it, and a key that identifies the block within its storage: views
        that permute or reshape the same elements share a block.

    Examples:
        >>> import torch
        >>> block, layout, _ = as_block(torch.arange(6.0).view(2, 3).t())
        >>> block.tolist(), layout.view(block).shape
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], torch.Size([3, 2]))
    """
    shape, strides, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    distinct = tuple(1 if stride == 0 else length for length, stride in zip(shape, strides, strict=True))
    if distinct != shape:
        tensor = tensor.as_strided(distinct, strides, offset)
    place: Hashable = (offset, tensor.numel())
    if not fills_memory(distinct, strides):
        place = (offset, distinct, strides)
        tensor = tensor.clone()
        if not fills_memory(distinct, tensor.stride()):
            tensor = tensor.contiguous()
        strides, offset = tensor.stride(), tensor.storage_offset()
    return tensor.as_strided((tensor.numel(),), (1,), offset), Layout(shape, distinct, strides), place


def viewed(tensor: Tensor) -> Tensor:
    """Return the strided tensor that a tensor is a view of; the tensor itself if it is no such view."""
    base = tensor._base if tensor._is_view() else None
    return tensor if base is None or base.is_nested or base.layout != strided else base


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor is a strided piece of memory; within `torch.func.vmap` it stands for one."""
    return tensor.layout == strided and not is_functorch_wrapped_tensor(tensor)


def is_plain(tensor: Tensor) -> bool:
    """Return whether memory holds a tensor's values: it is not nested, sparse, conjugated, of a subclass."""
    if type(tensor) not in (Tensor, nn.Parameter) and not isinstance(tensor, FakeTensor):
        return False
    return has_memory(tensor) and not (tensor.is_nested or tensor.is_neg() or tensor.is_conj())


def parts(tensor: Tensor) -> list[Tensor]:
    """Return the tensors whose memory a tensor keeps: several of a jagged one; none where that is unknown."""
    if is_traceable_wrapper_subclass(tensor):
        return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]
    return [tensor] if has_memory(tensor) and not tensor.is_nested else []


def storage_id(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's storage as long as the storage lives."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  # fake ones have no address


def reading_waits(tensor: Tensor) -> bool:
    """Return whether reading a value makes the host wait for a device."""
    return tensor.device.type != "cpu"


SAMPLE = 11
"""Values that are compared to detect a change of a tensor.

A prime number, which seldom divides the number of rows: steps of an eleventh then end in eleven columns.
"""


def sample(tensor: Tensor) -> tuple[complex, ...]:
    """Return a few values of a tensor, spread over rows and columns; none if reading waits for a device.

    Examples:
        >>> import torch
        >>> sample(torch.arange(4 * 16).view(4, 16))
        (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50)
    """
    if reading_waits(tensor) or isinstance(tensor, FakeTensor) or not tensor.numel():
        return ()
    if not fills_memory(tuple(tensor.shape), tensor.stride()):
        return ()
    count = min(SAMPLE, tensor.numel())
    step = tensor.numel() // count
    while gcd(step, tensor.numel()) > 1:  # else it could be a multiple of the row's length
        step -= 1
    few = tensor.detach().as_strided((count,), (step,), tensor.storage_offset())
    return tuple(few.tolist())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]  # torch declares no type
