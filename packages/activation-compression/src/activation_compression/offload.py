"""Stored tensors that wait in host memory, and are fetched before backward needs them.

Copies run on a separate stream, from and to pinned memory, one copy for each content. Backward goes through
the nodes from the last to the first, and opens a node's tensors in the order in which they were saved. When
it opens one, those that come next are fetched.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

__all__ = ["HostContent", "HostMemory", "Plain"]


class Movable(Protocol):
    """Content that consists of tensors."""

    @property
    def bits(self) -> int:
        """Bits per element."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that take memory."""
        ...

    def with_tensors(self, tensors: list[Tensor]) -> Self:
        """Return the same content in other memory."""
        ...

    def unpack(self) -> Tensor:
        """Return the block."""
        ...


class Plain:
    """A block as it is, or cast to a narrower dtype.

    Args:
        values: The stored values.
        dtype: The block's dtype.
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
        """The tensors that take memory."""
        return (self.values,)

    def with_tensors(self, tensors: list[Tensor]) -> Plain:
        """Return the same values in other memory."""
        [values] = tensors
        return Plain(values, self.dtype)

    def unpack(self) -> Tensor:
        """Return the block."""
        return self.values.to(self.dtype)


AHEAD = 4
"""Most contents that are fetched ahead."""
LEAVING = 4
"""Most copies to the host in progress; before one more starts, the device waits for the oldest."""


class Turns:
    """The order in which backward will open contents, as far as the forward pass shows it."""

    def __init__(self) -> None:
        self._nodes: deque[list[weakref.ref[HostContent]]] = deque()
        self._removed = 0
        self._last: int | None = None

    def add(self, content: HostContent, node: int | None) -> None:
        """Note that a node saves a content. The last of several nodes is the first to open it in backward.

        Args:
            content: The content.
            node: Sequence number of the node; None if it is unknown.
        """
        while self._nodes and not any(content_of() for content_of in self._nodes[0]):
            self._nodes.popleft()
            self._removed += 1
        if not self._nodes or node is None or node != self._last:
            self._nodes.append([])
        self._last = node
        content.turn = self._removed + len(self._nodes) - 1, len(self._nodes[-1])
        self._nodes[-1].append(weakref.ref(content))

    def after(self, content: HostContent) -> Iterator[HostContent]:
        """Yield the contents that backward opens after this one."""
        node, place = content.turn
        for number in range(node, self._removed - 1, -1):
            contents = self._nodes[number - self._removed]
            for position in range(place + 1 if number == node else 0, len(contents)):
                later = contents[position]()
                if later is not None and later.turn == (number, position):
                    yield later


class HostMemory:
    """Moves contents to the host, and fetches them in the order of backward.

    Attributes:
        stream: The stream of the copies; None on a machine without CUDA.
        node: Sequence number of the node that saves the next content.
    """

    node: int | None = None

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None

    @cached_property
    def _turns(self) -> Turns:
        return Turns()

    @cached_property
    def _leaving(self) -> deque[tuple[torch.cuda.Event | torch.Event, Tensor]]:
        """Copies to the host in progress, with the tensors that they read."""
        return deque()

    @cached_property
    def _fetched(self) -> deque[weakref.ref[HostContent]]:
        """Contents that were fetched ahead."""
        return deque()

    def take(self, content: Movable) -> HostContent:
        """Move a content to host memory; only single numbers stay on the device."""
        moved = HostContent(content, self)
        if self.stream is not None:
            self._leaving.append((self.stream.record_event(), moved.leaving))
            self._release(LEAVING)
        del moved.leaving
        self.again(moved)
        return moved

    def again(self, content: object) -> None:
        """Note that the current node saves a content too."""
        if isinstance(content, HostContent):
            self._turns.add(content, self.node)

    def _release(self, most: int) -> None:
        """Free what the oldest copies read; the stream waits for these copies, the host does not."""
        while len(self._leaving) > most:
            copied, _ = self._leaving.popleft()
            torch.cuda.current_stream().wait_event(copied)

    def fetch_after(self, content: HostContent) -> None:
        """Fetch the contents that come after one that was opened."""
        self._release(0)
        for number, later in enumerate(self._turns.after(content)):
            if number == AHEAD:
                break
            if later.opened < content.opened and not later.is_arriving:  # otherwise this pass has opened it
                later.fetch()
                self._fetched.append(weakref.ref(later))
        while len(self._fetched) > 2 * AHEAD:  # backward may have skipped some
            skipped = self._fetched.popleft()()
            if skipped is not None:
                skipped.drop()


class HostContent:
    """Content in host memory, all its tensors in one buffer; single numbers stay on the device.

    Args:
        content: The content to move.
        memory: The host memory that receives it.
    """

    nbytes = 0
    """Bytes on the device, apart from single numbers."""

    def __init__(self, content: Movable, memory: HostMemory) -> None:
        self.turn: tuple[int, int] = (0, 0)
        self.bits, self.opened = content.bits, 0
        self._memory = memory
        self._arriving: Tensor | None = None
        parts = [tensor for tensor in content.tensors if tensor.ndim]
        self._sizes = [(tensor.nbytes, tensor.dtype) for tensor in parts]
        self._device = parts[0].device
        self._content = content.with_tensors([t.new_empty(0) if t.ndim else t for t in content.tensors])
        self.leaving = _joined(parts)
        if memory.stream is None:
            self._host = self.leaving.clone()
        else:
            memory.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(memory.stream):
                self._host = _to_pinned(self.leaving)

    @property
    def is_arriving(self) -> bool:
        """Whether it is being fetched, or was fetched."""
        return self._arriving is not None

    def drop(self) -> None:
        """Free the fetched copy."""
        self._arriving = None

    def fetch(self) -> None:
        """Start the copy to the device."""
        if self._arriving is not None:
            return
        if self._memory.stream is None:
            self._arriving = self._host.clone()
        else:
            with torch.cuda.stream(self._memory.stream):
                self._arriving = self._host.to(self._device, non_blocking=True)

    def unpack(self) -> Tensor:
        """Return the block on its device."""
        self.fetch()
        buffer, self._arriving = self._arriving, None
        assert buffer is not None
        if self._memory.stream is not None:
            current = torch.cuda.current_stream()
            current.wait_stream(self._memory.stream)
            buffer.record_stream(current)
        self.opened += 1
        self._memory.fetch_after(self)
        parts = iter(_split(buffer, self._sizes))
        tensors = [tensor if not tensor.ndim else next(parts) for tensor in self._content.tensors]
        return self._content.with_tensors(tensors).unpack()


def _joined(tensors: list[Tensor]) -> Tensor:
    """Return the bytes of one-dimensional tensors, one after another; a single tensor is not copied."""
    bytes_of = [tensor.view(torch.uint8) for tensor in tensors]
    if len(tensors) == 1:
        return bytes_of[0]
    return torch.cat([part for part, _ in sorted(zip(bytes_of, tensors, strict=True), key=_alignment)])


def _alignment(pair: tuple[Tensor, Tensor]) -> int:
    """Sort the widest numbers first, so that all begin at multiples of their size."""
    return -pair[1].element_size()


def _split(buffer: Tensor, sizes: list[tuple[int, torch.dtype]]) -> list[Tensor]:
    """Undo `_joined`."""
    parts: dict[int, Tensor] = {}
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n][1].itemsize):
        length, dtype = sizes[number]
        parts[number], buffer = buffer[:length].view(dtype), buffer[length:]
    return [parts[number] for number in range(len(sizes))]


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
