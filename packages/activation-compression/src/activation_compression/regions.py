"""Checkpointed regions in a forward pass: what they decide from values, and what a policy caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks  # pyright: ignore
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import _CachingTorchDispatchMode

from activation_compression.operation import CurrentOperation
from activation_compression.stored import Saved

__all__ = ["Regions"]


class Regions:
    """The region that runs, and the caches of all.

    A region keeps its inputs, and runs again in backward. While it runs, other hooks than those of the
    forward pass are in charge.

    Args:
        pack: The hook of the forward pass.

    Attributes:
        inputs: Saved for the region that runs or comes next.
        entered: Whether a function has run in it.
        decides: Whether a function made integers or booleans from values with gradient history.
    """

    def __init__(self, pack: Callable[[Tensor], Any]) -> None:
        self.inputs: list[Saved] = []
        self.entered = self.decides = False
        self._pack = pack
        self._caches: dict[int, Mapping[Any, Mapping[int, Any]]] = {}

    def look(self, operation: CurrentOperation) -> bool:
        """Look at a function that has ended; return whether it ran in the region."""
        hooks = _top_saved_tensors_default_hooks(True)
        if hooks is not None and hooks[0] == self._pack:
            return False
        self.entered = True
        if not self.decides and any(given.requires_grad for given in operation.tensors()):
            made = [value for value in tree_leaves(operation.result) if isinstance(value, Tensor)]
            self.decides = any(not value.is_floating_point() and not value.is_complex() for value in made)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, _CachingTorchDispatchMode):
                self._caches[id(mode.storage)] = mode.storage
        return True

    def leave(self) -> None:
        """The region has ended."""
        self.entered = self.decides = False

    def cached(self) -> list[Tensor]:
        """Return what selective checkpointing holds, each memory once."""
        regions: dict[int, Tensor] = {}
        for storage in self._caches.values():
            for entry in tree_leaves([list(cache.values()) for cache in storage.values()]):
                value = getattr(entry, "val", None)
                if isinstance(value, Tensor):
                    regions.setdefault(value.untyped_storage()._cdata, value)
        return list(regions.values())
