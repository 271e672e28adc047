"""Compress what autograd saves, as a context manager around forward passes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from threading import Lock, local
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from activation_compression import kernels
from activation_compression.allocation import allocate
from activation_compression.blocks import as_block
from activation_compression.forward_pass import ForwardPass
from activation_compression.levels import WIDTHS, find_level
from activation_compression.offload import HostMemory, Plain
from activation_compression.operation import is_side_result, made_of_parameter
from activation_compression.quantizer import FLOATING, Codes, Flags, keys_of, pack_flags, pack_gate
from activation_compression.sensitivity import (
    Adjoint,
    distance,
    frozen,
    gradient,
    leaves,
    like_groups,
    over_processes,
    preserved,
    probed,
    shares,
    total_over_processes,
)
from activation_compression.statistics import Statistics
from activation_compression.stored import Content, Kept, Stored, StoredView
from finetune_common.errors import ConfigurationError, check_number

__all__ = ["ActivationCompressor", "compress_activations"]

PLAIN_TYPES = (Tensor, nn.Parameter)
Form = str | torch.dtype | tuple[float, float]
"""How a tensor is stored: rounded, exact, as a mask, as narrower integers, as what a gate asks."""

TRIALS = 2
"""Gradients by which an allocation is judged."""

KEYS = 1024
"""Keys of random numbers that are made at a time."""


class ActivationCompressor:
    """Keep activations in few bits between forward and backward; gradients stay unbiased to first order.

        h saved by an operation → Q_b(h),   E[Q_b(h)] = h,   ĝ = g(Q_b(h); θ)

    A context manager around forward passes, to be used any number of times; the backward pass may come
    later, anywhere. Floating tensors with gradient history are quantised, once for each storage however many
    operations saved them. Masks of dropout, bool, and where ReLU, LeakyReLU, ReLU6 and Hardtanh let the
    gradient through take one bit, exactly. Parameters, buffers, integers, statistics of normalisations,
    log-sum-exp of attention, what max, norm, abs, clamp, log-softmax and cross-entropy save, inputs and
    small tensors are kept unchanged.

    Args:
        model: Its parameters and buffers are never compressed; its modules name the rows of `stats`.
        level: L0 none; L1, L1.1, L1.2 fixed 4, 8, 2 bits; L2, L2.1, L2.2 automatic, 4, 3, 2 bits on average;
            L3 automatic 4 bits in host memory; swap host memory only; L4bit-swap 4 bits in host memory.
        bits: Automatic precision with this average instead of the level's, in [1, 32].
        group_size: Elements that share a minimum and a step, at least 1.
        seed: Of the rounding, whose random numbers draw from no random stream.
        min_elements: Tensors with fewer elements are kept unchanged.
        exclude: Patterns (`*`, `?`) of "module:operation" whose tensors are kept unchanged.

    Raises:
        ConfigurationError: A setting that does not exist; a level that needs CUDA where there is none; a
            model under `torch.compile`, which decides by itself what is saved.

    Source: Liu et al. 2022 (arXiv 2206.11357), with the level names of the released code. Differs from it in
    storing a tensor once, in 16-bit minima and steps, and in what `adapt` costs.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
        >>> compressor = ActivationCompressor(model, "L1")
        >>> with compressor:
        ...     loss = model(torch.randn(128, 64)).mean()
        >>> loss.backward()
        >>> [(row.operation, row.bits) for row in compressor.stats.rows]
        [('linear', 32), ('gelu', 4), ('linear', 4)]
    """

    def __init__(
        self,
        model: nn.Module,
        level: str = "L1",
        *,
        bits: float | None = None,
        group_size: int = 256,
        seed: int = 0,
        min_elements: int = 1024,
        exclude: Iterable[str] = (),
    ) -> None:
        self.level = find_level(level, bits)
        check_number("group_size", group_size, at_least=1)
        check_number("seed", seed, at_least=0, below=2**63)
        check_number("min_elements", min_elements, at_least=0)
        if self.level.offload and not torch.cuda.is_available():
            raise ConfigurationError(
                f"level {level!r} moves activations to host memory, and torch finds no CUDA device: "
                "use L1 or L2"
            )
        if any(
            isinstance(m, torch._dynamo.OptimizedModule) or m._compiled_call_impl for m in model.modules()
        ):
            raise ConfigurationError(
                "the model is under torch.compile, which decides what is saved: leave one of the two out"
            )
        self.model = model
        self.group_size, self.seed, self.min_elements = group_size, seed, min_elements
        self.exclude = tuple(exclude)
        self.stats = Statistics()
        self.widths: dict[str, int] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        self._host = HostMemory() if self.level.offload else None
        self._stored: WeakValueDictionary[Hashable, Stored] = WeakValueDictionary()
        self._own: set[int] = set()
        self._drawn = 0
        self._keys: tuple[int, torch.device, Tensor] | None = None
        self._lock = Lock()
        self._entered = local()
        self._observer: Adjoint | None = None
        self._reseeded: frozenset[str] = frozenset()
        self.log: list[dict[str, Any]] = []

    def __enter__(self) -> ActivationCompressor:
        if getattr(self._entered, "stack", None) is not None:
            raise ConfigurationError("this compressor is already around the forward pass: enter it once")
        if torch.compiler.is_compiling():
            raise ConfigurationError(
                "activations cannot be compressed inside torch.compile: enter outside of it"
            )
        own = [*self.model.parameters(), *self.model.buffers()]
        self._own = {t.untyped_storage()._cdata for t in own if type(t) in PLAIN_TYPES or kernels.is_fake(t)}
        this = ForwardPass(self._names)
        self.stats = this.stats
        with ExitStack() as stack:
            stack.enter_context(saved_tensors_hooks(lambda tensor: self._pack(tensor, this), _unpack))
            stack.enter_context(this.operation)
            self._entered.stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        stack, self._entered.stack = self._entered.stack, None
        stack.__exit__(*error)

    def adapt(self, loss_fn: Callable[[], Tensor], probes: int = 2) -> dict[str, int]:
        """Measure how much each tensor's rounding moves the gradient, and assign widths anew.

            c_l = E_v ‖D_l^½ ∂⟨g, v⟩/∂h_l‖²,  v random signs
            minimise Σ c_l / (2ᵇˡ - 1)²  subject to  Σ b_l n_l ≤ b Σ n_l

        One forward pass, one backward pass, and `probes` backward passes through it measure all tensors. What
        they save is kept in 8 bits. Where an operation cannot be differentiated twice, groups of like tensors
        are rounded anew, one pass for each group. Random states, buffers and `.grad` stay as they are. In a
        process group every process calls it with its own batch, and all assign the same widths; `loss_fn`
        then runs the model itself, not its DDP wrapper.

        The first order is exact for inputs of linear maps and convolutions alone; what is wrong in others, a
        deep model may multiply. So three allocations are tried out, two passes each: the optimum of the first
        order, the optimum without one bit for those others, and equal widths. The best one is taken.

        Args:
            loss_fn: Runs a forward pass, not within this compressor, and returns the loss.
            probes: Vectors of random signs, at least 1.

        Returns:
            The widths, by "module:operation:number"; 32 is a tensor that is kept unchanged.

        Raises:
            ConfigurationError: The level's widths are fixed, or the forward pass saved nothing.

        Source: Liu et al. 2022 (arXiv 2206.11357), section 5; the released code takes three forward and
        backward passes for every tensor.
        """
        if not self.level.automatic:
            raise ConfigurationError("the widths of this level are fixed: use L2, L2.1, L2.2, L3 or bits=")
        check_number("probes", probes, at_least=1)
        sensitivities, elements, least = over_processes(*self._measure(loss_fn, probes))
        careful = allocate(sensitivities, elements, self.level.bits, least)
        free = allocate(sensitivities, elements, self.level.bits)
        alike = dict.fromkeys(elements, self._widest())
        self.widths = self._best_of(loss_fn, [careful] + [w for w in (free, alike) if w != careful])
        found = {"sensitivities": sensitivities, "elements": elements, "least": least}
        self.log.append({**found, "widths": dict(self.widths)})
        return self.widths

    def _measure(
        self, loss_fn: Callable[[], Tensor], probes: int
    ) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
        """Return each tensor's sensitivity, elements and least width."""
        adjoint = Adjoint()
        compressor, graph = self._fixed("L1.1"), self._fixed("L1.1")
        compressor._observer = adjoint
        generator = torch.Generator().manual_seed(self.seed + len(self.log))
        with preserved(self.model), torch.enable_grad():
            with compressor:
                loss = loss_fn()
            if not adjoint.elements:
                raise ConfigurationError(
                    "loss_fn saved nothing that can be compressed: is it within a context?"
                )
            try:
                with graph:
                    gradients = gradient(loss, self.model, create_graph=True)
                with frozen(leaves(loss)):
                    measured = adjoint.measure(gradients, generator, probes)
                return measured, adjoint.elements, adjoint.least
            except RuntimeError as error:
                if "is not implemented" not in str(error) and "once_differentiable" not in str(error):
                    raise
        del loss
        return self._probe(loss_fn, like_groups(adjoint.elements)), adjoint.elements, adjoint.least

    def _best_of(self, loss_fn: Callable[[], Tensor], candidates: Sequence[dict[str, int]]) -> dict[str, int]:
        """Return the widths with which the gradient comes closest to the plain one; all processes agree."""

        def gradients(level: str, widths: dict[str, int], draw: int = 0) -> list[Tensor]:
            compressor = self._fixed(level)
            compressor.widths, compressor._drawn = widths, draw * KEYS
            return compressor._gradient(loss_fn)

        if len(candidates) == 1:
            return candidates[0]
        plain = gradients("L0", {})
        errors = [
            sum(distance(gradients("L1", widths, draw), plain) for draw in range(TRIALS))
            for widths in candidates
        ]
        summed = total_over_processes(errors)
        return candidates[summed.index(min(summed))]

    def _probe(self, loss_fn: Callable[[], Tensor], groups: list[dict[str, int]]) -> dict[str, float]:
        """Measure groups of tensors by rounding each anew: one forward and backward pass for each group."""

        def gradients(group: frozenset[str]) -> list[Tensor]:
            compressor = self._fixed("L1")
            compressor._reseeded = group
            return compressor._gradient(loss_fn)

        found = probed(gradients, [frozenset(group) for group in groups], bits=4)
        return {
            k: c for total, group in zip(found, groups, strict=True) for k, c in shares(total, group).items()
        }

    def _gradient(self, loss_fn: Callable[[], Tensor]) -> list[Tensor]:
        """Return the gradient of a loss whose forward pass this compresses, and leave no trace."""
        with preserved(self.model), torch.enable_grad():
            with self:
                loss = loss_fn()
            return gradient(loss, self.model)

    def _fixed(self, level: str) -> ActivationCompressor:
        """Return a compressor with these settings and another level."""
        return ActivationCompressor(
            self.model,
            level,
            group_size=self.group_size,
            seed=self.seed,
            min_elements=self.min_elements,
            exclude=self.exclude,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return how many tensors were rounded, the widths, and the log of measurements."""
        return {"drawn": self._drawn, "widths": dict(self.widths), "log": list(self.log)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of another run."""
        self._drawn, self.widths, self.log = state["drawn"], dict(state["widths"]), list(state["log"])

    def width(self, key: str) -> int:
        """Return the bits for the tensor `module:operation:number`."""
        return self.widths.get(key, 32 if self.level.bits > 8 else self._widest())

    def _widest(self) -> int:
        """Return the largest quantised width that is no more than the level's average."""
        return max((width for width in WIDTHS if width <= self.level.bits), default=1)

    @torch.no_grad()
    def _pack(self, tensor: Tensor, this: ForwardPass) -> Kept | StoredView:
        if not self._is_own(tensor):
            with self._lock:
                view = self._store(tensor, this)
            if view is not None:
                return view
        return Kept(tensor)

    def _is_own(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter or a buffer in any view, or not a plain strided tensor."""
        if tensor.layout != torch.strided or not (type(tensor) in PLAIN_TYPES or kernels.is_fake(tensor)):
            return True
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return True  # FSDP gathers its shards into parameters that the model itself does not hold
        return tensor.untyped_storage()._cdata in self._own

    def _store(self, tensor: Tensor, this: ForwardPass) -> StoredView | None:
        """Store a tensor in another form; None where it is kept."""
        form = self._form(tensor, this) if tensor.numel() >= self.min_elements else None
        storage = tensor.untyped_storage()
        operation = this.operation.name or ""
        if form is not None:
            block, layout, place = as_block(tensor.detach())
            key = (storage._cdata, place, tensor._version, tensor.dtype, form)
            stored = self._stored.get(key)
            if stored is None and not this.keeps(key):
                name = this.name(tensor)
                content = self._content(block, name, form)
                if content is None:
                    this.keep(key, name, tensor)
                else:
                    stored = self._stored[key] = Stored(name, content, StorageWeakRef(storage))
                    this.met(key)
                    this.count(name, tensor, content.bits, content.nbytes)
            elif stored is not None and not this.met(key):  # an earlier pass has stored it
                this.count(this.name(tensor), tensor, stored.content.bits, stored.content.nbytes)
            if stored is not None:
                stored.saved += 1
                if self._observer is not None:
                    self._observer.saw(tensor, stored, layout, operation)
                return StoredView(stored, layout)
        if self._observer is not None:
            self._observer.saw(tensor, None, None, operation)
        if form is None and not this.keeps(storage._cdata):
            this.keep(storage._cdata, this.name(tensor), tensor)
        return None

    def _form(self, tensor: Tensor, this: ForwardPass) -> Form | None:
        """Return how to store a tensor; None to keep it."""
        operation = this.operation
        if tensor.dtype == torch.bool:
            return "mask"
        if not tensor.is_floating_point():
            return operation.fitting_dtype(tensor)
        if not tensor.requires_grad:
            return "mask" if operation.made_mask(tensor) else None
        if tensor.dtype not in FLOATING or made_of_parameter(tensor) or is_side_result(tensor):
            return None
        if any(fnmatchcase(this.place(tensor), pattern) for pattern in self.exclude):
            return None
        return "exact" if operation.needs_exact else operation.gate or "rounded"

    def _content(self, block: Tensor, name: str, form: Form) -> Content | None:
        content: Codes | Flags | Plain | None = None
        if self.level.automatic or self.level.bits <= 8:
            if form == "mask":
                content = pack_flags(block)
            elif isinstance(form, torch.dtype):
                content = Plain(block.to(form), block.dtype)
            elif isinstance(form, tuple):
                content = pack_gate(block, *form)
            elif form == "rounded" and (bits := self.width(name)) <= 8:
                content = Codes.pack(block, bits, self.group_size, self._next_keys(block, name))
        return content if self._host is None else self._host.take(content or Plain(block, block.dtype))

    def _next_keys(self, block: Tensor, name: str) -> Tensor | None:
        if kernels.is_fake(block):
            return None
        first, index = divmod(self._drawn, KEYS)
        if self._keys is None or self._keys[:2] != (first, block.device):
            self._keys = (first, block.device, keys_of(self.seed, first * KEYS, KEYS, block.device))
        self._drawn += 1
        if name in self._reseeded:
            return keys_of(self.seed + 1, self._drawn - 1, 1, block.device)[0]
        return self._keys[2][index]


def _unpack(packed: Kept | StoredView) -> Tensor:
    with torch.no_grad():
        return packed.open()


def compress_activations(model: nn.Module, level: str = "L1", **settings: Any) -> ActivationCompressor:
    """Return a compressor for one forward pass; arguments as for `ActivationCompressor`.

    Examples:
        >>> layer = torch.nn.Linear(64, 64)
        >>> with compress_activations(layer, "L1.1") as compressor:
        ...     loss = layer(torch.randn(64, 64)).sigmoid().mean()
        >>> loss.backward()
        >>> round(compressor.stats.ratio, 1)
        1.6
    """
    return ActivationCompressor(model, level, **settings)
