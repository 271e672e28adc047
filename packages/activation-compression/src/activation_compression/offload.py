"""Stored tensors that wait in host memory, and come back before their turn.

Copies run on a stream of their own, from and to pinned memory. Backward opens tensors in the opposite order
of forward: opening one starts the way back of the one that was saved before it.
"""

from __future__ import annotations

import weakref
from typing import Protocol, Self

import torch
from torch import Tensor

__all__ = ["HostContent", "HostMemory", "Plain"]


class Movable(Protocol):
    """Content that consists of tensors."""

    @property
    def bits(self) -> int:
        """Bits an element."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What takes memory."""
        ...

    def with_tensors(self, tensors: list[Tensor]) -> Self:
        """Return the same content in other memory."""
        ...

    def unpack(self) -> Tensor:
        """Return the block."""
        ...


class Plain:
    """A block as it is, or integers in a narrower dtype.

    Args:
        values: What is stored.
        dtype: Of the block.
    """

    def __init__(self, values: Tensor, dtype: torch.dtype) -> None:
        self.values, self.dtype = values, dtype
        self.bits = 8 * values.element_size()

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.nbytes

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What takes memory."""
        return (self.values,)

    def with_tensors(self, tensors: list[Tensor]) -> Plain:
        """Return the same values in other memory."""
        [values] = tensors
        return Plain(values, self.dtype)

    def unpack(self) -> Tensor:
        """Return the block."""
        return self.values.to(self.dtype)


class HostMemory:
    """Takes content to the host, each knowing the one before it."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None
        self._last: weakref.ref[HostContent] | None = None

    def take(self, content: Movable) -> HostContent:
        """Move content to host memory; it takes no byte on the device afterwards."""
        moved = HostContent(content, self.stream, self._last)
        self._last = weakref.ref(moved)
        return moved


class HostContent:
    """Content in host memory.

    Args:
        content: What is moved.
        stream: Where copies run; None on a machine without CUDA.
        before: What was saved just before.
    """

    nbytes = 0
    """On the device."""

    def __init__(
        self, content: Movable, stream: torch.cuda.Stream | None, before: weakref.ref[HostContent] | None
    ) -> None:
        self.bits = content.bits
        self._devices = [tensor.device for tensor in content.tensors]
        self._stream, self._before = stream, before
        self._arriving: list[Tensor] | None = None
        self._opened = 0
        if stream is None:
            host = [tensor.clone() for tensor in content.tensors]
        else:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                host = [_to_pinned(tensor) for tensor in content.tensors]
                for tensor in content.tensors:
                    tensor.record_stream(stream)
        self._host = content.with_tensors(host)

    def fetch(self) -> None:
        """Start the way back to the device."""
        if self._arriving is not None:
            return
        pairs = list(zip(self._host.tensors, self._devices, strict=True))
        if self._stream is None:
            self._arriving = [tensor.clone() for tensor, _ in pairs]
        else:
            with torch.cuda.stream(self._stream):
                self._arriving = [tensor.to(device, non_blocking=True) for tensor, device in pairs]

    def unpack(self) -> Tensor:
        """Return the block on its device."""
        self.fetch()
        tensors, self._arriving = self._arriving, None
        assert tensors is not None
        if self._stream is not None:
            current = torch.cuda.current_stream()
            current.wait_stream(self._stream)
            for tensor in tensors:
                tensor.record_stream(current)
        self._opened += 1
        before = self._before() if self._before is not None else None
        if before is not None and before._opened < self._opened:  # tensors of a node open in any order
            before.fetch()
        return self._host.with_tensors(tensors).unpack()


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
