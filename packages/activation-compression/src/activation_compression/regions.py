"""Checkpointed regions in a forward pass: whether they decide by values, and what a policy caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor
from torch._C._autograd import _top_saved_tensors_default_hooks  # pyright: ignore
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode_stack,  # pyright: ignore[reportPrivateUsage]  # torch has no public way
)
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import (
    _CachingTorchDispatchMode,  # pyright: ignore[reportPrivateUsage]  # torch has no public name for it
)

from activation_compression.blocks import storage_id
from activation_compression.operation import CurrentOperation
from activation_compression.stored import Saved

__all__ = ["Regions"]

Cache = Mapping[object, Mapping[int, object]]
"""What selective checkpointing keeps: operation → number of its call → result."""


class Regions:
    """The region that is running, and the caches of all regions.

    A region keeps its inputs, and runs again in backward. While it runs, autograd calls its hooks instead of
    those of the forward pass.

    Args:
        pack: The hook of the forward pass.

    Attributes:
        inputs: Tensors saved for the region that is running or about to run.
        entered: Whether a function has run in it.
        decides: Whether a function has made integers or bools from values with gradient history.
    """

    def __init__(self, pack: Callable[[Tensor], object]) -> None:
        self.inputs: list[Saved] = []
        self.entered = self.decides = False
        self._pack = pack
        self._caches: dict[int, Cache] = {}

    @property
    def packs_here(self) -> bool:
        """Whether autograd calls the hooks of the forward pass, neither a region's nor a caller's own."""
        hooks = cast("tuple[object, object] | None", _top_saved_tensors_default_hooks(True))
        return hooks is not None and hooks[0] == self._pack

    def look(self, operation: CurrentOperation) -> bool:
        """Look at a function that has ended; return whether it ran in the region."""
        if self.packs_here:
            return False
        self.entered = True
        if not self.decides and any(given.requires_grad for given in operation.tensors()):
            results = [value for value in tree_leaves(operation.result) if isinstance(value, Tensor)]
            self.decides = any(not value.is_floating_point() and not value.is_complex() for value in results)
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, _CachingTorchDispatchMode):
                cache = cast("Cache", mode.storage)  # pyright: ignore  # torch declares no type
                self._caches[id(cache)] = cache
        return True

    def leave(self) -> None:
        """Note that the region has ended."""
        self.entered = self.decides = False

    def cached(self) -> list[Tensor]:
        """Return the tensors that selective checkpointing holds, one for each storage."""
        tensors: dict[int, Tensor] = {}
        for cache in self._caches.values():
            for entry in tree_leaves([list(values.values()) for values in cache.values()]):
                value = getattr(entry, "val", None)
                if isinstance(value, Tensor):
                    tensors.setdefault(storage_id(value), value)
        return list(tensors.values())
