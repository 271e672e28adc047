"""A tensor's elements as one run of memory, and how to restore its shape and strides."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor, strided
from torch._subclasses import FakeTensor

__all__ = ["Layout", "as_block", "fills_memory", "reading_waits", "sample", "storage_id", "viewed"]


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


def storage_id(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's storage as long as the storage lives."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  # fake ones have no address


def reading_waits(tensor: Tensor) -> bool:
    """Return whether reading a value makes the host wait for a device."""
    return tensor.device.type != "cpu"


SAMPLE = 8
"""Values that are compared to detect a change of a tensor."""


def sample(tensor: Tensor) -> tuple[float, ...]:
    """Return a few values of a tensor, spread over its memory; none if reading would wait for a device.

    Examples:
        >>> import torch
        >>> sample(torch.arange(16.0))
        (0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0)
    """
    if reading_waits(tensor) or isinstance(tensor, FakeTensor) or not tensor.numel():
        return ()
    if not tensor.is_floating_point() or not fills_memory(tuple(tensor.shape), tensor.stride()):
        return ()
    count = min(SAMPLE, tensor.numel())
    step = tensor.numel() // count
    few = tensor.detach().as_strided((count,), (step,), tensor.storage_offset())
    return tuple(few.tolist())  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType, reportUnknownVariableType]  # torch declares no type
