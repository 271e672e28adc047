"""The store: which form a saved tensor takes, once however many operations saved it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import prod
from threading import Lock
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression import kernels
from activation_compression.attention import attended
from activation_compression.blocks import Layout, as_block, fills_memory, sample, viewed
from activation_compression.derivations import logarithms, made_again
from activation_compression.draws import Draws
from activation_compression.formulas import Formula, Formulas, Node
from activation_compression.group_choice import grouping_of
from activation_compression.grouping import Neighbours
from activation_compression.levels import WIDTHS, Level
from activation_compression.offload import HostMemory, Plain
from activation_compression.operation import CurrentOperation, made_of_parameter
from activation_compression.quantizer import FLOATING, Codes, fitting, pack_flags, pack_gate
from activation_compression.recipe import Derived, Recipe, noted
from activation_compression.stored import Alias, Content, Form, Held, Kept, Nothing, Saved, Stored, StoredView

__all__ = ["Store"]

PLAIN_TYPES = (Tensor, nn.Parameter)


class Pass(Protocol):
    """What a store asks of a forward pass; `ForwardPass` says what each of these does."""

    @property
    def operation(self) -> CurrentOperation: ...
    def formula(self, value: str | int) -> Formula: ...
    def place(self, saved: Saved) -> str: ...
    def name(self, saved: Saved, key: Hashable) -> str: ...
    def excludes(self, saved: Saved) -> bool: ...
    def keeps(self, tensor: Tensor) -> bool: ...
    def keep(self, saved: Saved, tensor: Tensor) -> bool: ...
    def met(self, stored: Stored) -> bool: ...
    def row_of(self, stored: Stored) -> None: ...
    def recount(self, stored: Stored) -> None: ...
    def count(self, saved: Saved, tensor: Tensor, bits: int, after: int, source: str = "") -> None: ...


@dataclass
class Store:
    """What all forward passes of a compressor store.

    Attributes:
        level: How much is rounded.
        derive: Whether values that follow from others are computed again.
        group_size: Elements that share a minimum and a step.
        draws: Keys of the rounding.
        min_elements: Tensors with fewer elements are kept.
        formulas: How backward formulas read what they saved.
        widths: Name → bits, where automatic precision has assigned them.
        ways: Name → how its elements are grouped, where automatic precision has chosen it.
        alike: Whether no tensor gets twice the bits of others.
        published: Whether all are grouped as in the published method: neighbours, not rotated.
    """

    level: Level
    derive: bool
    group_size: int
    draws: Draws
    min_elements: int
    formulas: Formulas
    widths: dict[str, int] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    alike: bool = False
    published: bool = False

    def __post_init__(self) -> None:
        self.own: set[int] = set()
        self.lock = Lock()
        self.table: WeakValueDictionary[Hashable, Stored] = WeakValueDictionary()
        self._host = HostMemory() if self.level.offload else None
        self.gathers = False
        """Whether a parameter was met that the model does not hold: FSDP gathers its shards into such ones,
        and lets go of them before other layers' backward passes could compute from them."""

    def hold(self, saved: Saved, node: Node | None, value: str | int, this: Pass) -> Held:
        """Return what holds a saved tensor until backward.

        Args:
            saved: The tensor.
            node: The node that saved it; None where it is not known.
            value: Its name there.
            this: The forward pass.
        """
        tensor = saved.tensor
        assert tensor is not None
        if self._is_own(tensor) or tensor._version != saved.version:
            return Kept(tensor, saved.version)
        formula = self.formulas.find(node.name(), value, node) if node is not None else this.formula(value)
        if self.level.packs and formula.kind == "shape" and tensor.numel() >= self.min_elements:
            this.count(saved, tensor, 0, 0)
            return Nothing(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        form = self._form(saved, tensor, formula, node, value, this)
        if self._host is not None:
            self._host.node = node._sequence_nr() if node is not None else None
        return self._keep(saved, tensor, this) if form is None else self._store(saved, tensor, form, this)

    def _is_own(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter or a buffer in any view, or not a plain strided tensor."""
        if tensor.is_nested or tensor.layout != torch.strided or tensor.is_neg() or tensor.is_conj():
            return True
        if not (type(tensor) in PLAIN_TYPES or kernels.is_fake(tensor)):
            return True
        if tensor.untyped_storage()._cdata in self.own:
            return True
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            self.gathers = True
            return True
        return False

    def _form(
        self,
        saved: Saved,
        tensor: Tensor,
        formula: Formula,
        node: Node | None,
        value: str | int,
        this: Pass,
    ) -> Form | None:
        """Return the form that a tensor takes; None to keep it."""
        level, unchanged = self.level, Form("unchanged") if self._host is not None else None
        if tensor.numel() < self.min_elements:
            return None
        if not level.packs or this.excludes(saved):
            return unchanged if tensor.requires_grad or tensor.dtype == torch.bool else None
        if tensor.dtype == torch.bool:
            return Form("flags")
        if not tensor.is_floating_point():
            bound = formula.bound(node) if formula.bound is not None else None
            return (
                Form("integers", dtype)
                if bound is not None and (dtype := fitting(bound, tensor.dtype))
                else None
            )
        if formula.kind == "coupled" and node is not None:
            recipe = attended(node, str(value), tensor)
            if recipe is not None:
                return Form("derived", recipe)
        if not tensor.requires_grad:
            if self.derive and (weight := this.operation.cast(saved, self.own)) is not None:
                return Form("derived", Recipe.of_cast(weight, tensor.dtype))
            return Form("flags") if formula.kind == "linear" and this.operation.made(tensor) else None
        if formula.kind != "gate" and (recipe := self._again(tensor, formula, node)) is not None:
            return Form("derived", recipe)
        if made_of_parameter(tensor):
            return None
        if formula.kind == "gate" and formula.gate is not None and tensor.dtype in FLOATING:
            return Form("gate", formula.gate(node))
        if not level.rounds or tensor.dtype not in FLOATING:
            return unchanged
        if formula.kind == "logarithm":
            return Form("half") if self.derive and tensor.dtype == torch.float32 else unchanged
        rounded = formula.kind in ("linear", "smooth", "coupled")
        return Form("rounded", formula) if rounded else unchanged

    def _again(self, tensor: Tensor, formula: Formula, node: Node | None) -> Recipe | None:
        """Return how to compute a tensor again, if that is as good as storing it."""
        base = viewed(tensor)
        maker = base.grad_fn
        if self.gathers or not self.derive or maker is None or base.dtype != tensor.dtype:
            return None
        if base._version != noted(maker, "version", 0) or not fills_memory(tuple(base.shape), base.stride()):
            return None
        if formula.kind == "logarithm" and node is not None and self.level.rounds:
            return logarithms(node)
        recipe = made_again(maker, base.output_nr)
        if isinstance(recipe, StoredView) and isinstance(recipe.stored.content, Derived):
            recipe = recipe.stored.content.recipe
        if not isinstance(recipe, Recipe) or noted(maker, "sample", ()) not in ((), sample(base)):
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
            key = (storage._cdata, place, tensor._version, tensor.dtype, "copy")
            stored = self.table.get(key)
            if stored is None:
                name = f"{this.place(saved)}:kept"
                content = Plain(
                    block.clone() if block.untyped_storage()._cdata == storage._cdata else block, block.dtype
                )
                stored = self.table[key] = Stored(name, content, StorageWeakRef(storage))
                this.count(saved, tensor, content.bits, content.nbytes)
            return self._view(stored, layout, is_exact=False)
        if this.keep(saved, tensor) and self.level.rounds:
            self._exact_for_all(tensor, this)
        return Kept(tensor)

    def _exact_for_all(self, tensor: Tensor, this: Pass) -> None:
        """Give earlier users of a rounded tensor the exact one, now that it is kept anyway."""
        block, _, place = as_block(tensor.detach())
        key = (tensor.untyped_storage()._cdata, place, tensor._version, tensor.dtype, "rounded")
        stored = self.table.get(key)
        if stored is not None and stored.sample == sample(block):
            stored.content = Alias(block)
            this.recount(stored)

    def _view(self, stored: Stored, layout: Layout, **facts: Any) -> StoredView:
        view = StoredView(stored, layout, **facts)
        view.use()
        return view

    def _store(self, saved: Saved, tensor: Tensor, form: Form, this: Pass) -> Held:
        """Store a tensor in another form, or share what is stored."""
        storage = tensor.untyped_storage()
        tensor_held = viewed(tensor) if form.kind == "derived" else tensor
        block, layout, place = as_block(tensor_held.detach())
        key = (storage._cdata, place, tensor._version, tensor.dtype, form.kind)
        name = this.name(saved, key)
        if this.keeps(tensor):
            return Kept(tensor)
        stored, few = self.table.get(key), sample(block)
        if stored is None or stored.sample != few:  # a change through .data does not raise the version
            content = self._content(block, name, form, tensor_held, layout)
            if content is None:
                return self._keep(saved, tensor, this)
            stored = self.table[key] = Stored(name, content, StorageWeakRef(storage), few)
            this.met(stored)
            this.row_of(stored)
            this.count(saved, tensor, content.bits, content.nbytes, getattr(content, "source", ""))
        else:
            if self._host is not None:
                self._host.again(stored.content)
            if not this.met(stored):  # an earlier pass has stored it
                this.count(saved, tensor, stored.content.bits, stored.content.nbytes)
        if tensor_held is not tensor:
            offset = int(tensor.storage_offset()) - int(tensor_held.storage_offset())
            kept = tuple(1 if s == 0 else n for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            layout = Layout(tuple(tensor.shape), kept, tensor.stride(), offset)
        if form.kind == "derived":
            return self._view(stored, layout, is_exact=form.detail.is_exact, depth=form.detail.depth)
        dense = layout.strides == tensor.stride()
        exact = dense and form.kind in ("flags", "integers", "unchanged")
        return self._view(stored, layout, is_value=form.kind != "gate", is_exact=exact)

    def _content(self, block: Tensor, name: str, form: Form, whole: Tensor, layout: Layout) -> Content | None:
        content: Any = None
        match form.kind:
            case "flags":
                content = pack_flags(block)
            case "integers" | "half":
                dtype = torch.float16 if form.kind == "half" else form.detail
                content = Plain(block.to(dtype), block.dtype)
            case "gate":
                content = pack_gate(block, *form.detail)
            case "rounded":
                content = self._rounded(block, name, form.detail, whole, layout)
            case "derived":
                form.detail.use()
                return Derived(form.detail, whole)
        return content if self._host is None else self._host.take(content or Plain(block, block.dtype))

    def _rounded(self, block: Tensor, name: str, formula: Formula, whole: Tensor, layout: Layout) -> Any:
        """Return a rounded block; None where its width is none of the quantiser's."""
        bits, grouping = self.width(name, formula.finer), Neighbours(self.group_size)
        if bits == 16 and block.element_size() > 2:
            return Plain(block.to(torch.bfloat16), block.dtype)
        if not self.published:
            groups = self.ways.get(name, formula.groups)
            grouping = grouping_of(whole, layout, block.numel(), groups, self.group_size)
        codes = Codes.pack(block, bits, grouping, self.draws.next(block, name)) if bits <= 8 else None
        return codes if codes is None or codes.is_finite else None

    def width(self, name: str, finer: bool = False) -> int:
        """Return the bits for the tensor `module:operation:number`."""
        usual = 32 if self.level.bits > 8 else self.widest()
        return self.widths.get(name, 2 * usual if finer and usual <= 8 and not self.alike else usual)

    def widest(self) -> int:
        """Return the largest quantised width that is no more than the level's average."""
        return max((width for width in WIDTHS if width <= self.level.bits), default=1)
