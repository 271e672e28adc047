"""What a compressor knows of one forward pass: names of saved tensors, what is kept, rows of statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.operation import CurrentOperation, calling_module, producer
from activation_compression.statistics import SavedTensor, Statistics

__all__ = ["ForwardPass"]


class ForwardPass:
    """One forward pass; another one, in another thread too, has its own.

    Args:
        modules: id of a module → its name.

    Attributes:
        operation: The torch function that is running.
        stats: A row a saved tensor.
    """

    def __init__(self, modules: Mapping[int, str]) -> None:
        self.operation = CurrentOperation()
        self.stats = Statistics()
        self._modules = modules
        self._occurrences: Counter[str] = Counter()
        self._met: set[Hashable] = set()
        self._kept: dict[Hashable, StorageWeakRef] = {}
        self._whole: set[int] = set()
        self._seen: dict[int, StorageWeakRef] = {}

    def place(self, tensor: Tensor) -> str:
        """Return "module:operation" of what is saving a tensor."""
        return f"{calling_module(self._modules)}:{self.operation.name or producer(tensor)}"

    def name(self, tensor: Tensor) -> str:
        """Return "module:operation:number" of a saved tensor, the same in every forward pass."""
        place = self.place(tensor)
        number = self._occurrences[place]
        self._occurrences[place] += 1
        return f"{place}:{number}"

    def met(self, key: Hashable) -> bool:
        """Return whether this pass has stored a block before, and note that it has now."""
        before = key in self._met
        self._met.add(key)
        return before

    def keeps(self, key: Hashable) -> bool:
        """Return whether a tensor is known as kept."""
        return key in self._kept

    def keep(self, key: Hashable, name: str, tensor: Tensor) -> None:
        """Note a tensor that is kept: who saves it again keeps it too, under no other name."""
        storage = tensor.untyped_storage()
        self._kept[key] = StorageWeakRef(storage)
        after = 0 if storage._cdata in self._whole else storage.nbytes()
        self._whole.add(storage._cdata)
        self.count(name, tensor, 8 * tensor.element_size(), after)

    def count(self, name: str, tensor: Tensor, bits: int, after: int) -> None:
        """Add a row; a storage counts where it is first seen, and none takes its address while this lasts."""
        storage = tensor.untyped_storage()
        before = 0 if storage._cdata in self._seen else storage.nbytes()
        self._seen[storage._cdata] = StorageWeakRef(storage)
        module, operation, _ = name.split(":")
        dtype = str(tensor.dtype).removeprefix("torch.")
        self.stats.rows.append(
            SavedTensor(module, operation, tuple(tensor.shape), dtype, bits, before, after)
        )
