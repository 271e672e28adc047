"""One forward pass: what it saved, in which order, and by which formula each tensor will be read."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from types import FrameType

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.blocks import sample
from activation_compression.derivations import RECIPES
from activation_compression.formulas import EXACT, OUTLIERS, Formula, Node, what_follows
from activation_compression.operation import CurrentOperation, calling_module, producer, saved_values
from activation_compression.recipe import note
from activation_compression.regions import Regions
from activation_compression.statistics import SavedTensor, Statistics
from activation_compression.store import Store
from activation_compression.stored import Saved, Stored

__all__ = ["ForwardPass"]

PATIENCE = 4
"""Operations whose values wait for what comes next, at most."""

Observer = Callable[[Tensor, Saved, Formula], None]


class ForwardPass:
    """One forward pass; another one, in another thread too, has its own.

    Args:
        store: Where tensors go.
        modules: id of a module → its name.
        exclude: Patterns of "module:operation" whose tensors are kept.
        observer: Is told of every tensor that was saved, and how its formula reads it.

    Attributes:
        operation: The torch function that is running.
        stats: A row a saved tensor.
        unused: The patterns that nothing has matched.
    """

    def __init__(
        self, store: Store, modules: Mapping[int, str], exclude: Sequence[str], observer: Observer | None
    ) -> None:
        self.operation = CurrentOperation(self._ended, self._before)
        self.stats = Statistics()
        self.unused = set(exclude)
        self._store, self._modules, self._exclude, self._observer = store, modules, exclude, observer
        self._waiting: list[Saved] = []
        self._wary: dict[Node, tuple[Node, list[tuple[Saved, str | int]]]] = {}
        self._regions = Regions(self.pack)
        self._occurrences: Counter[str] = Counter()
        self._names: dict[Hashable, str] = {}
        self._met: set[int] = set()
        self._rows: dict[int, int] = {}
        self._kept: dict[tuple[int, int], StorageWeakRef] = {}
        self._whole: set[int] = set()
        self._seen: dict[int, StorageWeakRef] = {}

    def pack(self, tensor: Tensor) -> Saved:
        """Take a tensor that autograd saves."""
        with torch._C.DisableTorchFunction():
            return self._pack(tensor, sys._getframe(1))

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
        """Settle what is left when the pass has ended."""
        self._settle([])
        self._decide_all()
        self._settle_regions(ended=True)
        for tensor in self._regions.cached():
            self.count_place("", "checkpoint policy", tensor)

    def _before(self) -> None:
        """A function begins: what was saved since the last one is of a custom autograd function."""
        if self._wary and self.operation.changes_in_place:
            self._decide_all()
        if self._waiting:
            self._settle(self.operation.custom_nodes() if self._store.formulas.declares else [])

    def _ended(self, nodes: list[Node]) -> None:
        operation = self.operation
        if self._regions.inputs:
            inside = self._regions.look(operation)
            self._settle_regions(ended=not inside)
        if self._waiting or self._wary:
            self._settle(nodes)
        result = operation.result
        if isinstance(result, Tensor) and (node := result.grad_fn) is not None:
            self._note(result, node)

    def _note(self, result: Tensor, node: Node) -> None:
        """Let a node know what it takes to make its result again."""
        name, facts = node.name(), {}
        if name in RECIPES and not (result.is_nested or result.is_sparse or result._is_view()):
            if few := sample(result):
                facts["sample"] = few
            if result._version:
                facts["version"] = result._version
            if name == "NativeLayerNormBackward0":
                facts["epsilon"] = self.operation.argument("eps", 4, 1e-5)
            note(node, **facts)

    def _settle(self, nodes: list[Node]) -> None:
        """Decide on all tensors that wait, in the order in which they were saved."""
        waiting, self._waiting = self._waiting, []
        unread = {id(saved): saved for saved in waiting}
        for node in sorted(nodes, key=lambda node: node._sequence_nr()) if len(nodes) > 1 else nodes:
            self._follow(node)
            for saved, value in sorted(saved_values(node), key=lambda pair: pair[0].number) if unread else ():
                if unread.pop(id(saved), None) is None:
                    continue
                if self._store.formulas.find(node.name(), value, node).wary:
                    self._wary.setdefault(node, (node, []))[1].append((saved, value))
                else:
                    self._hold(saved, node, value)
        for saved in unread.values():
            self._hold(saved, None, "")
        while len(self._wary) > PATIENCE:
            self._decide(next(iter(self._wary)))

    def _decide_all(self) -> None:
        while self._wary:
            self._decide(next(iter(self._wary)))

    def _follow(self, node: Node) -> None:
        """Decide on wary values that a new node goes on with."""
        if self._wary:
            for number, (before, _) in enumerate(node.next_functions):
                if before in self._wary:
                    what = what_follows(node, number)
                    if what == "passed on":
                        self._wary[node] = self._wary.pop(before)
                    else:
                        self._decide(before, exact=what == "singular")

    def _decide(self, tail: Node, exact: bool = False) -> None:
        node, values = self._wary.pop(tail)
        for saved, value in values:
            self._hold(saved, None if exact else node, value if not exact else "")

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
        with self._store.lock:
            held = self._store.hold(saved, node, value, self)
        saved.settle(held)
        if self._observer is not None:
            formula = self._store.formulas.find(node.name(), value, node) if node is not None else EXACT
            self._observer(tensor, saved, formula)

    def formula(self, value: str | int) -> Formula:
        """Return the formula of what no node saved: inputs of checkpointed regions may be rounded.

        They stay exact where the region decides something from values, such as which expert a token goes
        to: it would decide otherwise when it runs again.
        """
        return OUTLIERS if value == "region" and not self._regions.decides else EXACT

    def _calling(self) -> str:
        return calling_module(self._modules)

    def place(self, saved: Saved) -> str:
        """Return "module:operation" of what saved a tensor."""
        if saved.place is None:
            saved.place = self._calling()
        return f"{saved.place}:{saved.operation}"

    def excludes(self, saved: Saved) -> bool:
        """Return whether a pattern matches what saved a tensor."""
        if not self._exclude:
            return False
        place = self.place(saved)
        matching = {pattern for pattern in self._exclude if fnmatchcase(place, pattern)}
        self.unused -= matching
        return bool(matching)

    def name(self, saved: Saved, key: Hashable) -> str:
        """Return "module:operation:number" of what is saved under a key, the same in every forward pass."""
        if key not in self._names:
            place = self.place(saved)
            self._names[key] = f"{place}:{self._occurrences[place]}"
            self._occurrences[place] += 1
        return self._names[key]

    def met(self, stored: Stored) -> bool:
        """Return whether this pass has stored a block before, and note that it has now."""
        before = id(stored) in self._met
        self._met.add(id(stored))
        return before

    def keeps(self, tensor: Tensor) -> bool:
        """Return whether the memory of a tensor, in its present state, is kept by this pass."""
        return (tensor.untyped_storage()._cdata, tensor._version) in self._kept

    def keep(self, saved: Saved, tensor: Tensor) -> bool:
        """Note a tensor that is kept: who saves it again keeps it too. Return whether that is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata, tensor._version
        if key in self._kept:
            return False
        self._kept[key] = StorageWeakRef(storage)
        after = 0 if storage._cdata in self._whole else storage.nbytes()
        self._whole.add(storage._cdata)
        self.count(saved, tensor, 8 * tensor.element_size(), after)
        return True

    def row_of(self, stored: Stored) -> None:
        """Note that the next row is that of a block."""
        self._rows[id(stored)] = len(self.stats.rows)

    def recount(self, stored: Stored) -> None:
        """Write the row of a block anew: its content is another one."""
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
        """Add a row; a storage counts where it is first seen, and none takes its address while this lasts."""
        storage = tensor.untyped_storage()
        before = 0 if storage._cdata in self._seen else storage.nbytes()
        self._seen[storage._cdata] = StorageWeakRef(storage)
        bits = 8 * tensor.element_size() if bits is None else bits
        after = storage.nbytes() if after is None else after
        dtype = str(tensor.dtype).removeprefix("torch.")
        row = SavedTensor(module, operation, tuple(tensor.shape), dtype, bits, before, after, source)
        self.stats.rows.append(row)


_SAVES_INPUTS = getattr(torch.utils.checkpoint, "_NoopSaveInputs", None)
"""What saves a checkpointed region's inputs in older torch, as an autograd function of its own."""


def _begins_region(caller: FrameType) -> bool:
    """Return whether a checkpointed region saves its inputs."""
    if caller.f_code.co_filename == torch.utils.checkpoint.__file__:
        return True
    return _SAVES_INPUTS is not None and caller.f_locals.get("cls") is _SAVES_INPUTS
