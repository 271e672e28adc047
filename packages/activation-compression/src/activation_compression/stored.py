"""What the autograd graph holds instead of a saved tensor, and how the tensor is restored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.blocks import Layout

__all__ = ["Alias", "Content", "Form", "Held", "Kept", "Nothing", "Saved", "Stored", "StoredView"]


NUMBERS = count()
"""The order in which tensors are saved."""


@dataclass(frozen=True)
class Form:
    """The form in which a tensor is stored.

    Attributes:
        kind: flags, integers, half, gate, rounded, derived or unchanged (in host memory).
        detail: The dtype of integers, the two ends of a gate, the formula that reads a rounded tensor, or the
            recipe of a derived one.
    """

    kind: str
    detail: object = None


class Content(Protocol):
    """A block as it is stored."""

    @property
    def bits(self) -> int:
        """Bits per element."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes on the block's device."""
        ...

    def unpack(self) -> Tensor:
        """Return the block."""
        ...


class Held(Protocol):
    """What replaces a saved tensor until backward."""

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
        """Longest chain of computations that `open` runs."""
        ...

    def open(self) -> Tensor:
        """Return the tensor."""
        ...

    def use(self) -> None:
        """Count one more reader in each backward pass."""
        ...


class Kept:
    """A tensor that is kept unchanged; changing it in place before backward is an error, as without hooks.

    Args:
        tensor: The tensor.
        version: Its version when it was saved; by default the current one.
    """

    is_value, is_exact, depth = True, True, 0

    def __init__(self, tensor: Tensor, version: int | None = None) -> None:
        self.tensor = tensor.detach()  # the tensor itself may own the graph that will own this object
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
        """Do nothing: the tensor needs no count of its readers."""


@dataclass(frozen=True)
class Nothing:
    """Replaces a tensor whose values are never read: zeros in its shape and strides."""

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
    """A block that is in memory anyway, since it is kept unchanged elsewhere."""

    nbytes = 0

    def __init__(self, block: Tensor) -> None:
        self.bits = 8 * block.element_size()
        self._kept = Kept(block)

    def unpack(self) -> Tensor:
        """Return the block."""
        return self._kept.open()


class Stored:
    """A stored block, shared by all operations that saved it.

    The decompressed block lives from its first use in a backward pass to its last.

    Args:
        name: "module:operation:number" of the operation that saved it first.
        content: The block as it is stored.
        source: The storage it came from. While this weak reference lives, no other storage gets the same
            number (`storage_id`), so that a number in a table still means this storage.
        sample: A few of its values, to detect a change that did not raise its version.
    """

    def __init__(
        self, name: str, content: Content, source: StorageWeakRef, sample: tuple[complex, ...] = ()
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
        layout: Where the tensor's elements are in it.
        is_value: False for a gate.
        is_exact: Whether the values are the tensor's bit for bit.
        depth: Longest chain of computations behind the block.
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
    """A saved tensor: unchanged at first, in its stored form once the formula that reads it is known.

    Args:
        tensor: The tensor.
        operation: The function that is running.
        module: Name of the module that is running; None to look it up later.
    """

    def __init__(self, tensor: Tensor, operation: str, module: str | None) -> None:
        self.tensor: Tensor | None = tensor
        self.number = next(NUMBERS)
        self.shape = torch.Size() if tensor.is_nested else tensor.shape
        self.version, self.dtype = tensor._version, tensor.dtype
        self.operation, self.module = operation, module
        self.held: Held | None = None

    def settle(self, held: Held) -> None:
        """Replace the tensor by its stored form."""
        self.held, self.tensor = held, None

    def open(self) -> Tensor:
        """Return the tensor."""
        if self.held is None:  # backward runs within the forward pass that saved it
            assert self.tensor is not None
            return self.tensor.detach()
        with torch.no_grad():
            return self.held.open()
