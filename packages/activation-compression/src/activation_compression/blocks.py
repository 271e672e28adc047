"""A tensor's elements as one run of memory, and the way back to its shape and strides."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor, strided
from torch._subclasses import FakeTensor

__all__ = ["Layout", "as_block", "fills_memory", "reading_waits", "sample", "viewed"]


@dataclass(frozen=True)
class Layout:
    """How a tensor lies on a block.

    Attributes:
        shape: Of the tensor.
        kept: The shape without repetition: 1 where the tensor was expanded.
        strides: In the block, for `kept`.
        offset: Of its first element in the block.
    """

    shape: tuple[int, ...]
    kept: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    def view(self, block: Tensor) -> Tensor:
        """Return the tensor that a block holds."""
        return block.as_strided(self.kept, self.strides, self.offset).expand(self.shape)


def fills_memory(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the elements fill one stretch of memory, in any order, without gap or overlap."""
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
        The block, the tensor's layout on it, and what tells the block from others in the same storage: views
        that permute or reshape the same elements share a block.

    Examples:
        >>> import torch
        >>> block, layout, _ = as_block(torch.arange(6.0).view(2, 3).t())
        >>> block.tolist(), layout.view(block).shape
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], torch.Size([3, 2]))
    """
    shape, strides, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
    kept = tuple(1 if stride == 0 else length for length, stride in zip(shape, strides, strict=True))
    if kept != shape:
        tensor = tensor.as_strided(kept, strides, offset)
    place: Hashable = (offset, tensor.numel())
    if not fills_memory(kept, strides):
        place = (offset, kept, strides)
        tensor = tensor.clone()
        if not fills_memory(kept, tensor.stride()):
            tensor = tensor.contiguous()
        strides, offset = tensor.stride(), tensor.storage_offset()
    return tensor.as_strided((tensor.numel(),), (1,), offset), Layout(shape, kept, strides), place


def viewed(tensor: Tensor) -> Tensor:
    """Return the strided tensor that a tensor is a view of; itself where there is none."""
    base = tensor._base if tensor._is_view() else None
    return tensor if base is None or base.is_nested or base.layout != strided else base


def reading_waits(tensor: Tensor) -> bool:
    """Return whether reading a value makes the host wait for a device."""
    return tensor.device.type != "cpu"


SAMPLE = 8
"""Values by which two states of a tensor are told apart."""


def sample(tensor: Tensor) -> tuple[float, ...]:
    """Return a few values of a tensor, spread over its memory; none where reading would wait for a device.

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
    return tuple(tensor.detach().as_strided((count,), (step,), tensor.storage_offset()).tolist())
