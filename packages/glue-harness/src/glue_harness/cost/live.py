"""The bytes of tensors that are alive, real or not."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["LiveBytes", "rounded"]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live storages, real, fake or without values, and their peak.

    Args:
        rounding: Each storage is rounded up to a multiple of this, as by an allocator.
        device: Only storages on this type of device count; None for all.

    Examples:
        >>> with LiveBytes() as live:
        ...     x = torch.zeros(8)
        ...     y = x + x.sum()
        ...     del x
        >>> live.now, live.peak  # y alone; before, also x and its sum
        (32, 68)
    """

    def __init__(self, rounding: int = 1, device: str | None = None) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._rounding, self._device = rounding, device
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known and self._device in (None, storage.device.type):
            size = self._known[storage] = rounded(storage.nbytes(), self._rounding)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


def rounded(size: int, multiple: int) -> int:
    """Return the next multiple of a number.

    Examples:
        >>> rounded(513, 512)
        1024
    """
    return -(-size // multiple) * multiple
