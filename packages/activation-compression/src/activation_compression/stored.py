"""The way back: what the autograd graph holds instead of a saved tensor."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.blocks import Layout

__all__ = ["Alias", "Content", "Form", "Held", "Kept", "Nothing", "Saved", "Stored", "StoredView"]


NUMBERS = count()
"""The order in which tensors are saved."""


@dataclass(frozen=True)
class Form:
    """Another form of a tensor.

    Attributes:
        kind: flags, integers, half, gate, rounded, derived or unchanged (in host memory).
        detail: The dtype, the two numbers, the recipe, or the formula of what is rounded.
    """

    kind: str
    detail: Any = None


class Content(Protocol):
    """A block in another form."""

    @property
    def bits(self) -> int:
        """Bits an element."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the device of the block."""
        ...

    def unpack(self) -> Tensor:
        """Return the block."""
        ...


class Held(Protocol):
    """What stands for a saved tensor."""

    @property
    def is_value(self) -> bool:
        """Whether `open` returns the tensor's values, rounded or not."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether `open` returns them bit for bit, in the same strides."""
        ...

    @property
    def depth(self) -> int:
        """Computations, one upon another, behind `open`."""
        ...

    def open(self) -> Tensor:
        """Return the tensor."""
        ...

    def use(self) -> None:
        """Count one more reader in each backward pass."""
        ...


class Kept:
    """A tensor that is kept as it is; changing it in place before backward is an error, as without hooks.

    Args:
        tensor: What is kept.
        version: Its version when it was saved; by default the present one.
    """

    is_value, is_exact, depth = True, True, 0

    def __init__(self, tensor: Tensor, version: int | None = None) -> None:
        self.tensor = tensor.detach()  # the tensor itself may own the graph that will hold this
        self.version = tensor._version if version is None else version

    def open(self) -> Tensor:
        """Return the tensor."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                "a tensor needed for backward was changed in place after it was saved (version "
                f"{self.tensor._version}, expected {self.version}): clone it before the change, or call "
                "backward first"
            )
        return self.tensor

    def use(self) -> None:
        """Do nothing: the tensor lives as long as something refers to it."""


@dataclass(frozen=True)
class Nothing:
    """A tensor whose values are never read: zeros in its shape and strides."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_value, is_exact, depth = False, False, 0

    def open(self) -> Tensor:
        """Return zeros."""
        zeros = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return zeros.zero_()

    def use(self) -> None:
        """Do nothing."""


class Alias:
    """A block that is kept as it is for another one's sake."""

    nbytes = 0

    def __init__(self, block: Tensor) -> None:
        self.bits = 8 * block.element_size()
        self._kept = Kept(block)

    def unpack(self) -> Tensor:
        """Return the block."""
        return self._kept.open()


class Stored:
    """A block in another form, shared by all that saved it.

    The decompressed block lives from its first use in a backward pass to its last.

    Args:
        name: "module:operation:number" of what saved it first.
        content: The block in its other form.
        source: The storage it came from. The weak reference also keeps the storage's address from being given
            to another one, so that an address found in a table of these is still the same storage.
        sample: A few of its values, to notice a change that did not raise its version.
    """

    def __init__(
        self, name: str, content: Content, source: StorageWeakRef, sample: tuple[float, ...] = ()
    ) -> None:
        self.name, self.content, self.source, self.sample = name, content, source, sample
        self.saved = 0
        self._opened = 0
        self._block: Tensor | None = None
        self._lock = Lock()

    def block(self) -> Tensor:
        """Return the decompressed block."""
        with self._lock:
            block = self.content.unpack() if self._block is None else self._block
            self._opened += 1
            self._block = None if self._opened % self.saved == 0 else block
            return block


@dataclass(frozen=True)
class StoredView:
    """One saved tensor: a layout on a stored block.

    Attributes:
        stored: The block.
        layout: How the tensor lies on it.
        is_value: False for a gate.
        is_exact: Whether nothing of it was rounded.
        depth: Computations behind the block.
    """

    stored: Stored
    layout: Layout
    is_value: bool = True
    is_exact: bool = False
    depth: int = 0

    def open(self) -> Tensor:
        """Return the tensor."""
        return self.layout.view(self.stored.block())

    def use(self) -> None:
        """Count one more reader in each backward pass."""
        self.stored.saved += 1


class Saved:
    """A saved tensor: at first as it is, then, when it is known which formula will read it, in its form.

    Args:
        tensor: What is saved.
        operation: The function that is running.
        place: "module:operation", where it cannot be found out later.
    """

    def __init__(self, tensor: Tensor, operation: str, place: str | None) -> None:
        self.tensor: Tensor | None = tensor
        self.number = next(NUMBERS)
        self.shape = torch.Size() if tensor.is_nested else tensor.shape
        self.version = tensor._version
        self.operation, self.place = operation, place
        self.held: Held | None = None

    def settle(self, held: Held) -> None:
        """Drop the tensor and keep its stored form."""
        self.held, self.tensor = held, None

    def open(self) -> Tensor:
        """Return the tensor."""
        if self.held is None:  # backward within the forward pass that saved it
            assert self.tensor is not None
            return self.tensor.detach()
        with torch.no_grad():
            return self.held.open()
