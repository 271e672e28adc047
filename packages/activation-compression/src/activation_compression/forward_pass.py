"""One forward pass: what it saved, in which order, and which formula will read each tensor."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import FrameType

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch._C import _DisableFuncTorch as DisableFuncTorch  # pyright: ignore[reportPrivateUsage]
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from activation_compression.blocks import parts, sample, storage_id
from activation_compression.derivations import RECIPES
from activation_compression.following import Following
from activation_compression.formulas import EXACT, OUTLIERS, Formula
from activation_compression.nodes import Node, node_of
from activation_compression.operation import (
    CurrentOperation,
    calling_module,
    producer,
    saved_contents,
    saved_values,
)
from activation_compression.recipe import Note
from activation_compression.regions import Regions
from activation_compression.statistics import SavedTensor, Statistics
from activation_compression.store import Store
from activation_compression.stored import Saved, Stored

__all__ = ["ForwardPass"]

Observer = Callable[[Tensor, Saved, Formula], None]


class ForwardPass:
    """One forward pass; each pass, in each thread, has an object of its own.

    Args:
        store: Where tensors are stored.
        modules: id of a module → its name.
        exclude: Patterns of "module:operation" whose tensors are kept.
        observer: Called with every saved tensor and the formula that will read it.

    Attributes:
        operation: The torch function that is running.
        stats: A row for each saved tensor.
        unused: The patterns that have matched nothing.
    """

    def __init__(
        self, store: Store, modules: Mapping[int, str], exclude: Sequence[str], observer: Observer | None
    ) -> None:
        self.operation = CurrentOperation(self._ended, self._before)
        self.stats = Statistics()
        self.unused = set(exclude)
        self._store, self._modules, self._exclude, self._observer = store, modules, exclude, observer
        self._waiting: list[Saved] = []
        self._following = Following(store.formulas, self.operation, self._hold)
        self._regions = Regions(self.pack)
        self._occurrences: Counter[str] = Counter()
        self._names: dict[Hashable, str] = {}
        self._met: set[int] = set()
        self._rows: dict[int, int] = {}
        self._kept: dict[tuple[int, int], StorageWeakRef] = {}
        self._kept_storages: set[int] = set()
        self._seen: dict[int, StorageWeakRef] = {}

    def pack(self, tensor: Tensor) -> Saved:
        """Receive a tensor that autograd saves."""
        with DisableTorchFunction(), DisableFuncTorch():
            return self._pack(tensor, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # the only way

    def _pack(self, tensor: Tensor, caller: FrameType) -> Saved:
        inside = self.operation.function is not None
        saved = Saved(tensor, self.operation.name or producer(tensor), None if inside else self._calling())
        if not inside and _begins_region(caller):
            self._settle_regions(ended=self._regions.entered)
            self._regions.inputs.append(saved)
        else:
            self._waiting.append(saved)
        return saved

    def close(self) -> None:
        """Decide on all tensors that are left, at the end of the pass."""
        self._settle([])
        self._following.leave()
        self._settle_regions(ended=True)
        for tensor in self._regions.cached():
            self.count_place("", "checkpoint policy", tensor)

    def _before(self) -> None:
        """A function begins: a custom autograd function saved what came since the last one."""
        for tensor in self.operation.changing():
            self._following.before_change(tensor)
        if self._waiting:
            self._settle(self.operation.custom_nodes() if self._store.formulas.declares else [])

    def _ended(self, nodes: list[Node]) -> None:
        operation = self.operation
        if self._regions.inputs:
            inside = self._regions.look(operation)
            self._settle_regions(ended=not inside)
        if self._waiting or self._following.waits:
            self._settle(nodes)
        if not self._regions.packs_here:
            self._keep_others(nodes)
        result = operation.result
        if isinstance(result, Tensor) and (node := node_of(result)) is not None:
            self._note(result, node)

    def _keep_others(self, nodes: list[Node]) -> None:
        """Note the tensors that a caller's own hooks keep."""
        contents = [content for node in nodes for _, content in saved_contents(node)]
        for tensor in tree_leaves(contents):
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                self.keep_parts(Saved(tensor, self.operation.name or "", None), tensor)

    def _note(self, result: Tensor, node: Node) -> None:
        """Note at a node what is needed to compute its result again."""
        name = node.name()
        if name in RECIPES and not (result.is_nested or result.is_sparse or result._is_view()):
            normalises = name == "NativeLayerNormBackward0"
            epsilon = self.operation.argument("eps", 4, 1e-5) if normalises else None
            Note(result._version, sample(result), epsilon).attach(node)

    def _settle(self, nodes: list[Node]) -> None:
        """Decide on all waiting tensors, in the order in which they were saved."""
        waiting, self._waiting = self._waiting, []
        unread = {id(saved): saved for saved in waiting}
        for node in sorted(nodes, key=lambda node: node._sequence_nr()) if len(nodes) > 1 else nodes:
            self._following.meet(node)
            for saved, value in sorted(saved_values(node), key=lambda pair: pair[0].number) if unread else ():
                if unread.pop(id(saved), None) is None:
                    continue
                if self._is_wary(saved, node, value):
                    self.place(saved)  # while its module runs
                    self._following.wait(node, saved, value)
                else:
                    self._hold(saved, node, value)
        for saved in unread.values():
            self._hold(saved, None, "")

    def _is_wary(self, saved: Saved, node: Node, value: str | int) -> bool:
        """Return whether the form of a tensor depends on what follows."""
        tensor, store = saved.tensor, self._store
        if tensor is None or not tensor.requires_grad or tensor.numel() < store.min_elements:
            return False
        return store.level.rounds and store.formulas.find(node.name(), value, node).wary

    def _settle_regions(self, ended: bool) -> None:
        if ended:
            inputs, self._regions.inputs = self._regions.inputs, []
            for saved in inputs:
                self._hold(saved, None, "region")
            self._regions.leave()

    @torch.no_grad()
    def _hold(self, saved: Saved, node: Node | None, value: str | int) -> None:
        tensor = saved.tensor
        assert tensor is not None
        with self._store.lock, DisableFuncTorch():
            held = self._store.hold(saved, node, value, self)
        saved.settle(held)
        if self._observer is not None:
            formula = self._store.formulas.find(node.name(), value, node) if node is not None else EXACT
            self._observer(tensor, saved, formula)

    def formula(self, value: str | int) -> Formula:
        """Return the formula of a value that no node saved: inputs of checkpointed regions may be rounded.

        They stay exact if the region decides something by values, such as a token's expert: run again on
        rounded values, it could decide differently.
        """
        return OUTLIERS if value == "region" and not self._regions.decides else EXACT

    def _calling(self) -> str:
        return calling_module(self._modules)

    def place(self, saved: Saved) -> str:
        """Return "module:operation" of the operation that saved a tensor."""
        if saved.module is None:
            saved.module = self._calling()
        return f"{saved.module}:{saved.operation}"

    def excludes(self, saved: Saved) -> bool:
        """Return whether a pattern matches the operation that saved a tensor."""
        if not self._exclude:
            return False
        place = self.place(saved)
        matching = {pattern for pattern in self._exclude if fnmatchcase(place, pattern)}
        self.unused -= matching
        return bool(matching)

    def name(self, saved: Saved, key: Hashable) -> str:
        """Return "module:operation:number" of the tensor with a key, the same in every forward pass."""
        if key not in self._names:
            place = self.place(saved)
            self._names[key] = f"{place}:{self._occurrences[place]}"
            self._occurrences[place] += 1
        return self._names[key]

    def met(self, stored: Stored) -> bool:
        """Return whether this pass has stored a block before, and note that it stores it now."""
        before = id(stored) in self._met
        self._met.add(id(stored))
        return before

    def keeps(self, tensor: Tensor) -> bool:
        """Return whether this pass keeps the memory of a tensor, in its current version."""
        return (storage_id(tensor), tensor._version) in self._kept

    def keep(self, saved: Saved, tensor: Tensor) -> bool:
        """Note that a tensor is kept, also for operations that save it later. Return whether that is new."""
        storage, identity = tensor.untyped_storage(), storage_id(tensor)
        key = identity, tensor._version
        if key in self._kept:
            return False
        self._kept[key] = StorageWeakRef(storage)
        after = 0 if identity in self._kept_storages else storage.nbytes()
        self._kept_storages.add(identity)
        self.count(saved, tensor, 8 * tensor.element_size(), after)
        return True

    def keep_parts(self, saved: Saved, tensor: Tensor) -> None:
        """Note that a tensor is kept, and not stored, whatever it consists of."""
        for part in parts(tensor):
            if storage_id(part) not in self._store.storages_of_model:
                self.keep(saved, part)

    def row_of(self, stored: Stored) -> None:
        """Note that the next row belongs to a block."""
        self._rows[id(stored)] = len(self.stats.rows)

    def recount(self, stored: Stored) -> None:
        """Rewrite the row of a block whose content was replaced."""
        number = self._rows.get(id(stored))
        if number is not None:
            row, content = self.stats.rows[number], stored.content
            self.stats.rows[number] = replace(row, bits=content.bits, stored_bytes=content.nbytes)

    def count(self, saved: Saved, tensor: Tensor, bits: int, after: int, source: str = "") -> None:
        """Add a row."""
        module, _, operation = self.place(saved).rpartition(":")
        self.count_place(module, operation, tensor, bits, after, source)

    def count_place(
        self,
        module: str,
        operation: str,
        tensor: Tensor,
        bits: int | None = None,
        after: int | None = None,
        source: str = "",
    ) -> None:
        """Add a row; the first row of a storage counts its bytes."""
        storage, identity = tensor.untyped_storage(), storage_id(tensor)
        before = 0 if identity in self._seen else storage.nbytes()
        self._seen[identity] = StorageWeakRef(storage)  # no other storage gets this number while it lives
        bits = 8 * tensor.element_size() if bits is None else bits
        after = storage.nbytes() if after is None else after
        dtype = str(tensor.dtype).removeprefix("torch.")
        row = SavedTensor(module, operation, tuple(tensor.shape), dtype, bits, before, after, source)
        self.stats.rows.append(row)


_SAVES_INPUTS = getattr(torch.utils.checkpoint, "_NoopSaveInputs", None)
"""The autograd function with which older versions of torch save the inputs of a checkpointed region."""


def _begins_region(caller: FrameType) -> bool:
    """Return whether the caller is a checkpointed region that saves its inputs."""
    if caller.f_code.co_filename == torch.utils.checkpoint.__file__:
        return True
    return _SAVES_INPUTS is not None and caller.f_locals.get("cls") is _SAVES_INPUTS
