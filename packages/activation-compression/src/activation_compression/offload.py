"""Stored tensors that wait in host memory, and come back before their turn.

Copies run on a stream of their own, from and to pinned memory, one for each content. Backward goes through
the nodes from the last to the first, and opens what a node saved in the order in which it was saved: opening
one starts the way back of those that come next.
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


AHEAD = 4
"""Contents that are fetched before their turn, at most."""
LEAVING = 4
"""Contents whose copies to the host may be under way; the device waits for the first before the next."""


class Turns:
    """The order in which backward opens what was saved, as far as forward tells it."""

    def __init__(self) -> None:
        self._nodes: deque[list[weakref.ref[HostContent]]] = deque()
        self._gone = 0
        self._last: int | None = None

    def add(self, content: HostContent, node: int | None) -> None:
        """Note that a node saves a content, which backward opens there first if earlier nodes did too.

        Args:
            content: What is saved.
            node: The number of the node, None where it is not known.
        """
        while self._nodes and not any(content_of() for content_of in self._nodes[0]):
            self._nodes.popleft()
            self._gone += 1
        if not self._nodes or node is None or node != self._last:
            self._nodes.append([])
        self._last = node
        content.turn = self._gone + len(self._nodes) - 1, len(self._nodes[-1])
        self._nodes[-1].append(weakref.ref(content))

    def after(self, content: HostContent) -> Iterator[HostContent]:
        """Yield what is opened after a content."""
        node, place = content.turn
        for number in range(node, self._gone - 1, -1):
            contents = self._nodes[number - self._gone]
            for position in range(place + 1 if number == node else 0, len(contents)):
                content_there = contents[position]()
                if content_there is not None and content_there.turn == (number, position):
                    yield content_there


class HostMemory:
    """Takes content to the host, and knows when its turn comes.

    Attributes:
        stream: Where copies run; None on a machine without CUDA.
        node: The number of the node that saves what is taken next.
    """

    node: int | None = None

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream() if torch.cuda.is_available() else None

    @cached_property
    def _turns(self) -> Turns:
        return Turns()

    @cached_property
    def _leaving(self) -> deque[tuple[torch.cuda.Event, Tensor]]:
        """Copies under way to the host, with what they read."""
        return deque()

    @cached_property
    def _arrived(self) -> deque[weakref.ref[HostContent]]:
        """Contents that were fetched before their turn."""
        return deque()

    def take(self, content: Movable) -> HostContent:
        """Move content to host memory; what is large of it takes no byte on the device afterwards."""
        moved = HostContent(content, self)
        if self.stream is not None:
            self._leaving.append((self.stream.record_event(), moved.leaving))
            self._let_go(LEAVING)
        del moved.leaving
        self.again(moved)
        return moved

    def again(self, content: object) -> None:
        """Note that the present node saves a content too."""
        if isinstance(content, HostContent):
            self._turns.add(content, self.node)

    def _let_go(self, least: int) -> None:
        """Give memory back whose copies have ended: the present stream waits for them, the host does not."""
        while len(self._leaving) > least:
            ended, _ = self._leaving.popleft()
            torch.cuda.current_stream().wait_event(ended)

    def fetch_after(self, content: HostContent) -> None:
        """Fetch what comes after a content that was opened."""
        self._let_go(0)
        for number, later in enumerate(self._turns.after(content)):
            if number == AHEAD:
                break
            if later.opened < content.opened and not later.is_arriving:  # else this pass has opened it
                later.fetch()
                self._arrived.append(weakref.ref(later))
        while len(self._arrived) > 2 * AHEAD:  # backward may have passed some by
            passed = self._arrived.popleft()()
            if passed is not None:
                passed.drop()


class HostContent:
    """Content in host memory, all its tensors in one buffer; numbers stay on the device.

    Args:
        content: What is moved.
        memory: Who takes it.
    """

    nbytes = 0
    """On the device, but for two numbers."""
    turn = (0, 0)

    def __init__(self, content: Movable, memory: HostMemory) -> None:
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
        """Whether it is on its way back, or there."""
        return self._arriving is not None

    def drop(self) -> None:
        """Let go of what was fetched."""
        self._arriving = None

    def fetch(self) -> None:
        """Start the way back to the device."""
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
        parts = iter(_parted(buffer, self._sizes))
        tensors = [tensor if not tensor.ndim else next(parts) for tensor in self._content.tensors]
        return self._content.with_tensors(tensors).unpack()


def _joined(tensors: list[Tensor]) -> Tensor:
    """Return the bytes of one-dimensional tensors, one after another; without a copy where there is one."""
    bytes_of = [tensor.view(torch.uint8) for tensor in tensors]
    if len(tensors) == 1:
        return bytes_of[0]
    return torch.cat([part for part, _ in sorted(zip(bytes_of, tensors, strict=True), key=_alignment)])


def _alignment(pair: tuple[Tensor, Tensor]) -> int:
    """The widest numbers come first: all then begin at multiples of their size."""
    return -pair[1].element_size()


def _parted(buffer: Tensor, sizes: list[tuple[int, torch.dtype]]) -> list[Tensor]:
    """Undo `_joined`."""
    parts: dict[int, Tensor] = {}
    for number in sorted(range(len(sizes)), key=lambda n: -sizes[n][1].itemsize):
        length, dtype = sizes[number]
        parts[number], buffer = buffer[:length].view(dtype), buffer[length:]
    return [parts[number] for number in range(len(sizes))]


def _to_pinned(tensor: Tensor) -> Tensor:
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
