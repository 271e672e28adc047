"""Which form a saved tensor takes; it is stored once, however many operations saved it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import prod
from threading import Lock
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression.attention import attended
from activation_compression.blocks import Layout, as_block, fills_memory, is_plain, sample, storage_id, viewed
from activation_compression.derivations import logarithms, made_again
from activation_compression.draws import Draws
from activation_compression.formulas import Formula, Formulas
from activation_compression.group_choice import grouping_of
from activation_compression.grouping import Neighbours
from activation_compression.levels import WIDTHS, Level
from activation_compression.nodes import Node, node_of
from activation_compression.offload import HostMemory, Plain
from activation_compression.operation import CurrentOperation, made_of_parameter
from activation_compression.quantizer import FLOATING, Codes, fitting, pack_flags, pack_gate
from activation_compression.recipe import Derived, Recipe, note_of
from activation_compression.stored import Alias, Content, Form, Held, Kept, Nothing, Saved, Stored, StoredView

__all__ = ["Store"]


class Pass(Protocol):
    """What a store needs of a forward pass; `ForwardPass` documents each member."""

    @property
    def operation(self) -> CurrentOperation: ...
    def formula(self, value: str | int) -> Formula: ...
    def place(self, saved: Saved) -> str: ...
    def name(self, saved: Saved, key: Hashable) -> str: ...
    def excludes(self, saved: Saved) -> bool: ...
    def keeps(self, tensor: Tensor) -> bool: ...
    def keep(self, saved: Saved, tensor: Tensor) -> bool: ...
    def keep_parts(self, saved: Saved, tensor: Tensor) -> None: ...
    def met(self, stored: Stored) -> bool: ...
    def row_of(self, stored: Stored) -> None: ...
    def recount(self, stored: Stored) -> None: ...
    def count(self, saved: Saved, tensor: Tensor, bits: int, after: int, source: str = "") -> None: ...


@dataclass
class Store:
    """The stored tensors of all forward passes of a compressor.

    Attributes:
        level: How much is rounded.
        derive: Whether values that follow from others are computed again.
        group_size: Elements that share a minimum and a step.
        draws: The random numbers of the rounding.
        min_elements: Tensors with fewer elements are kept.
        formulas: How backward formulas read the saved values.
        widths: Name → bits, where automatic precision has assigned them.
        ways: Name → how its elements are grouped, where automatic precision has chosen it.
        equal_widths: Whether all tensors get the same bits; otherwise some get twice the level's.
        published: Whether groups are those of the published method: neighbours, not rotated.
    """

    level: Level
    derive: bool
    group_size: int
    draws: Draws
    min_elements: int
    formulas: Formulas
    widths: dict[str, int] = field(default_factory=dict[str, int])
    ways: dict[str, str] = field(default_factory=dict[str, str])
    equal_widths: bool = False
    published: bool = False

    def __post_init__(self) -> None:
        self.storages_of_model: set[int] = set()
        self.lock = Lock()
        self.table: WeakValueDictionary[Hashable, Stored] = WeakValueDictionary()
        self._host = HostMemory() if self.level.offload else None
        self.gathers = False
        """Whether some parameter is not the model's: FSDP gathers shards into such parameters, and frees them
        before other layers' backward passes could compute from them."""

    def hold(self, saved: Saved, node: Node | None, value: str | int, this: Pass) -> Held:
        """Return what replaces a saved tensor until backward.

        Args:
            saved: The tensor.
            node: The node that saved it; None if it is unknown.
            value: The tensor's name at the node.
            this: The forward pass.
        """
        tensor = saved.tensor
        assert tensor is not None
        plain = is_plain(tensor)
        if self._is_of_model(tensor, plain):
            return Kept(tensor, saved.version)
        if not plain or tensor._version != saved.version:
            this.keep_parts(saved, tensor)
            return Kept(tensor, saved.version)
        formula = self.formulas.find(node.name(), value, node) if node is not None else this.formula(value)
        if self.level.packs and formula.kind == "shape" and tensor.numel() >= self.min_elements:
            this.count(saved, tensor, 0, 0)
            return Nothing(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        form = self._form(saved, tensor, formula, node, value, this)
        if self._host is not None:
            self._host.node = node._sequence_nr() if node is not None else None
        return self._keep(saved, tensor, this) if form is None else self._store(saved, tensor, form, this)

    def _is_of_model(self, tensor: Tensor, plain: bool) -> bool:
        """Return whether a tensor is a parameter or a buffer, in any view."""
        if plain and storage_id(tensor) in self.storages_of_model:
            return True
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            self.gathers |= plain
            return True
        return False

    def _form(
        self, saved: Saved, tensor: Tensor, formula: Formula, node: Node | None, value: str | int, this: Pass
    ) -> Form | None:
        """Return the form in which a tensor is stored; None to keep it."""
        level, unchanged = self.level, Form("unchanged") if self._host is not None else None
        if tensor.numel() < self.min_elements:
            return None
        if not level.packs or this.excludes(saved):
            return unchanged if tensor.requires_grad or tensor.dtype == torch.bool else None
        if tensor.dtype == torch.bool:
            return Form("flags")
        if not tensor.is_floating_point():
            if formula.bound is None or node is None:
                return None
            dtype = fitting(formula.bound(node), tensor.dtype)
            return Form("integers", dtype) if dtype is not None else None
        if formula.kind == "coupled" and node is not None:
            recipe = attended(node, str(value), tensor)
            if recipe is not None:
                return Form("derived", recipe)
        if not tensor.requires_grad:
            weight = this.operation.cast(saved, self.storages_of_model) if self.derive else None
            if weight is not None:
                return Form("derived", Recipe.of_cast(weight, tensor.dtype))
            return Form("flags") if formula.kind == "linear" and this.operation.made(tensor) else None
        if formula.kind != "gate" and (recipe := self._again(tensor, formula, node)) is not None:
            return Form("derived", recipe)
        if made_of_parameter(tensor):
            return None
        if formula.gate is not None and node is not None and tensor.dtype in FLOATING:
            return Form("gate", formula.gate(node))
        if not level.rounds or tensor.dtype not in FLOATING:
            return unchanged
        if formula.kind == "logarithm":
            return Form("half") if self.derive and tensor.dtype == torch.float32 else unchanged
        rounded = formula.kind in ("linear", "smooth", "coupled")
        return Form("rounded", formula) if rounded else unchanged

    def _again(self, tensor: Tensor, formula: Formula, node: Node | None) -> Recipe | None:
        """Return how to compute a tensor again, if the result is as good as a stored one."""
        base = viewed(tensor)
        maker = node_of(base)
        if self.gathers or not self.derive or maker is None or base.dtype != tensor.dtype:
            return None
        note = note_of(maker)
        if base._version != note.version or not fills_memory(tuple(base.shape), base.stride()):
            return None
        if formula.kind == "logarithm" and node is not None and self.level.rounds:
            return logarithms(node)
        recipe = made_again(maker, base.output_nr)
        if isinstance(recipe, StoredView) and isinstance(recipe.stored.content, Derived):
            recipe = recipe.stored.content.recipe
        if not isinstance(recipe, Recipe) or note.sample not in ((), sample(base)):
            return None
        if recipe.is_exact or (
            self.level.rounds and formula.kind in ("linear", "smooth") and not formula.finer
        ):
            return recipe
        return None

    def _keep(self, saved: Saved, tensor: Tensor, this: Pass) -> Held:
        """Keep a tensor; a small part of a large storage is copied, so that the storage can be freed."""
        storage = tensor.untyped_storage()
        bytes_alone = tensor.element_size() * prod(
            n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
        )
        if self.level.packs and 2 * bytes_alone < storage.nbytes() and not this.keeps(tensor):
            block, layout, place = as_block(tensor.detach())
            key = (storage_id(tensor), place, tensor._version, tensor.dtype, "copy")
            stored = self.table.get(key)
            if stored is None:
                name = f"{this.place(saved)}:kept"
                copy = block.clone() if storage_id(block) == storage_id(tensor) else block
                content = Plain(copy, block.dtype)
                stored = self.table[key] = Stored(name, content, StorageWeakRef(storage))
                this.count(saved, tensor, content.bits, content.nbytes)
            return _used(StoredView(stored, layout))
        if this.keep(saved, tensor) and self.level.rounds:
            self._exact_for_all(tensor, this)
        return Kept(tensor)

    def _exact_for_all(self, tensor: Tensor, this: Pass) -> None:
        """Replace the rounded copy that earlier operations saved: the exact tensor is in memory anyway."""
        block, _, place = as_block(tensor.detach())
        key = (storage_id(tensor), place, tensor._version, tensor.dtype, "rounded")
        stored = self.table.get(key)
        if stored is not None and stored.sample == sample(block):
            stored.content = Alias(block)
            this.recount(stored)

    def _store(self, saved: Saved, tensor: Tensor, form: Form, this: Pass) -> Held:
        """Store a tensor in a form, or share the stored copy."""
        base = viewed(tensor) if form.kind == "derived" else tensor
        block, layout, place = as_block(base.detach())
        key = (storage_id(tensor), place, tensor._version, tensor.dtype, form.kind)
        name = this.name(saved, key)
        if this.keeps(tensor):
            return Kept(tensor)
        stored, few = self.table.get(key), sample(block)
        if stored is None or stored.sample != few:  # a change through .data does not raise the version
            content = self._content(block, name, form, base, layout)
            if content is None:
                return self._keep(saved, tensor, this)
            source = StorageWeakRef(tensor.untyped_storage())
            stored = self.table[key] = Stored(name, content, source, few)
            this.met(stored)
            this.row_of(stored)
            this.count(saved, tensor, content.bits, content.nbytes, getattr(content, "source", ""))
        else:
            if self._host is not None:
                self._host.again(stored.content)
            if not this.met(stored):  # an earlier pass has stored it
                this.count(saved, tensor, stored.content.bits, stored.content.nbytes)
        if base is not tensor:
            offset = int(tensor.storage_offset()) - int(base.storage_offset())
            distinct = tuple(1 if s == 0 else n for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            layout = Layout(tuple(tensor.shape), distinct, tensor.stride(), offset)
        if isinstance(recipe := form.detail, Recipe):
            return _used(StoredView(stored, layout, is_exact=recipe.is_exact, depth=recipe.depth))
        exact = layout.strides == tensor.stride() and form.kind in ("flags", "integers", "unchanged")
        return _used(StoredView(stored, layout, is_value=form.kind != "gate", is_exact=exact))

    def _content(self, block: Tensor, name: str, form: Form, base: Tensor, layout: Layout) -> Content | None:
        """Return a block in a form; None to keep the tensor."""
        match form:
            case Form("flags"):
                content = pack_flags(block)
            case Form("half"):
                content = Plain(block.to(torch.float16), block.dtype)
            case Form("integers", torch.dtype() as dtype):
                content = Plain(block.to(dtype), block.dtype)
            case Form("gate", (float(low), float(high))):
                content = pack_gate(block, low, high)
            case Form("rounded", Formula() as formula):
                content = self._rounded(block, name, formula, base, layout)
            case Form("derived", Recipe() as recipe):
                recipe.use()
                return Derived(recipe, base)
            case _:
                content = None
        return content if self._host is None else self._host.take(content or Plain(block, block.dtype))

    def _rounded(
        self, block: Tensor, name: str, formula: Formula, tensor: Tensor, layout: Layout
    ) -> Codes | Plain | None:
        """Return a rounded block; None if its width is above 16 bits or a value is not finite."""
        bits, grouping = self.width(name, formula.finer), Neighbours(self.group_size)
        if bits == 16 and block.element_size() > 2:
            return Plain(block.to(torch.bfloat16), block.dtype)
        if not self.published:
            groups = self.ways.get(name, formula.groups)
            grouping = grouping_of(tensor, layout, block.numel(), groups, self.group_size)
        if bits > 8:
            return None
        codes = Codes.pack(block, bits, grouping, self.draws.next(block, name))
        return codes if codes.is_finite else None

    def width(self, name: str, finer: bool = False) -> int:
        """Return the bits for the tensor `module:operation:number`."""
        usual = 32 if self.level.bits > 8 else self.widest()
        return self.widths.get(name, 2 * usual if finer and usual <= 8 and not self.equal_widths else usual)

    def widest(self) -> int:
        """Return the largest width of the quantiser that does not exceed the level's average."""
        return max((width for width in WIDTHS if width <= self.level.bits), default=1)


def _used(view: StoredView) -> StoredView:
    """Return a view, counted as one more reader of its block."""
    view.use()
    return view
