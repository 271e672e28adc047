"""What the autograd graph holds instead of a saved tensor."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.blocks import Layout

__all__ = ["Content", "Kept", "Stored", "StoredView"]


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


class Kept:
    """A tensor that is kept as it is; changing it in place before backward is an error, as without hooks."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # the tensor itself may own the graph that will hold this
        self.version = tensor._version

    def open(self) -> Tensor:
        """Return the tensor."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                "a tensor needed for backward was changed in place after it was saved (version "
                f"{self.tensor._version}, expected {self.version}): clone it before the change, or call "
                "backward first"
            )
        return self.tensor


class Stored:
    """A block in another form, shared by all that saved it.

    The decompressed block lives from its first use in a backward pass to its last.

    Args:
        name: "module:operation:number" of what saved it first.
        content: The block in its other form.
        source: The storage it came from. The weak reference also keeps the storage's address from being given
            to another one, so that an address found in a table of these is still the same storage.
    """

    def __init__(self, name: str, content: Content, source: StorageWeakRef) -> None:
        self.name, self.content, self.source = name, content, source
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
    """One saved tensor: a layout on a stored block."""

    stored: Stored
    layout: Layout

    def open(self) -> Tensor:
        """Return the tensor."""
        return self.layout.view(self.stored.block())
