"""Compresses the tensors that autograd saves, as a context manager around forward passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import count
from threading import local
from types import TracebackType
from typing import Any, TypedDict, Unpack, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from activation_compression.automatic import assigned
from activation_compression.blocks import is_plain, storage_id
from activation_compression.draws import Draws
from activation_compression.formulas import Formulas
from activation_compression.forward_pass import ForwardPass, Observer
from activation_compression.levels import find_level
from activation_compression.measured import Measurement
from activation_compression.statistics import Statistics
from activation_compression.store import Store
from activation_compression.stored import Saved
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_number, did_you_mean

__all__ = ["ActivationCompressor", "compress_activations"]

ONE_SHOTS = count()
"""Number of the next one-shot compressor; each rounds with other random numbers."""
TENSORS = 2**20
"""Tensors that a one-shot compressor can round before it repeats random numbers of the next one."""


class Settings(TypedDict, total=False):
    """The arguments of `ActivationCompressor` by keyword."""

    bits: float | None
    group_size: int
    seed: int
    min_elements: int
    exclude: Iterable[str]
    derive: bool
    formulas: Mapping[str, Iterable[str]] | None


@explain_arguments
class ActivationCompressor:
    """Keep activations in few bits between forward and backward; gradients stay unbiased to first order.

        h saved by an operation → Q_b(h),   E[Q_b(h)] = h,   ĝ = g(Q_b(h); θ)

    A context manager around forward passes, for any number of them; the backward pass may run later, inside
    or outside. A table (`activation_compression.formulas`) says which values each operation's backward
    formula may read rounded; values that are not in the table are kept exactly. A cheap function of other
    stored values is not stored but computed again. Masks and gates take one bit, exactly; parameters,
    buffers, statistics, inputs and small tensors are kept.

    Args:
        model: Its parameters and buffers are never compressed; its modules name the rows of `stats`.
        level: L0 none; lossless: no rounding, the gradient equal bit for bit; L1, L1.1, L1.2 fixed 4, 8, 2
            bits; L2, L2.1, L2.2 automatic, 4, 3, 2 bits on average; L3 automatic 4 bits in host memory; swap
            host memory only; L4bit-swap 4 bits in host memory.
        bits: Automatic precision with this average instead of the level's, in [1, 32].
        group_size: Elements that share a minimum and a step, at least 1.
        seed: Seed of the rounding, which uses no global random stream.
        min_elements: Tensors with fewer elements are kept unchanged.
        exclude: Patterns (`*`, `?`) of "module:operation" whose tensors are kept unchanged.
        derive: Whether values that follow from others are computed again; False stores them all, as the
            published method does.
        formulas: Name of your own `autograd.Function` → "linear", "smooth", "exact" or "shape" for each
            tensor that it saves; otherwise they are exact.

    Raises:
        ConfigurationError: A setting that is not allowed; a level that needs CUDA where there is none; a
            model under `torch.compile`, for which there is `compile_options`; at the end of a forward pass,
            a pattern of `exclude` that nothing matched.

    Source: Liu et al. 2022 (arXiv 2206.11357), with the level names of the released code. It differs in
    storing a tensor once or not at all, in deciding by backward formula, and in the cost of `adapt`.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
        >>> compressor = ActivationCompressor(model, "L1")
        >>> with compressor:
        ...     loss = model(torch.randn(128, 64)).mean()
        >>> loss.backward()
        >>> [(row.operation, row.bits, row.derived_from) for row in compressor.stats.rows]
        [('linear', 32, ''), ('gelu', 4, ''), ('linear', 0, 'gelu of 1:gelu')]
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
        derive: bool = True,
        formulas: Mapping[str, Iterable[str]] | None = None,
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
        if any(map(_is_compiled, model.modules())):
            raise ConfigurationError(
                "the model is under torch.compile, which decides what is saved: compress there, with "
                "torch.compile(model, options=activation_compression.compile_options('L1'))"
            )
        self.model = model
        self.exclude = tuple(exclude)
        self.stats = Statistics()
        self.log: list[Measurement] = []
        self.store = Store(self.level, derive, group_size, Draws(seed), min_elements, Formulas(formulas))
        self.store.equal_widths = self.store.published = not derive
        self._settings = Settings(
            group_size=group_size,
            seed=seed,
            min_elements=min_elements,
            exclude=self.exclude,
            derive=derive,
            formulas=formulas,
        )
        modules = cast("Iterable[tuple[str, nn.Module]]", model.named_modules())
        self._names = {id(module): name for name, module in modules}
        self._entered = local()
        self.observer: Observer | None = None

    @property
    def widths(self) -> dict[str, int]:
        """Name → bits, where automatic precision has assigned them; 32 keeps a tensor."""
        return self.store.widths

    @widths.setter
    def widths(self, widths: dict[str, int]) -> None:
        self.store.widths = widths

    @property
    def ways(self) -> dict[str, str]:
        """Name → how the elements are grouped, where automatic precision has chosen it."""
        return self.store.ways

    @ways.setter
    def ways(self, ways: dict[str, str]) -> None:
        self.store.ways = ways

    def __enter__(self) -> ActivationCompressor:
        if getattr(self._entered, "stack", None) is not None:
            raise ConfigurationError("this compressor is already in use in this thread: enter it only once")
        if torch.compiler.is_compiling():
            raise ConfigurationError(
                "a compressor cannot be entered inside torch.compile: remove it, and compile with "
                "options=activation_compression.compile_options('L1')"
            )
        of_model = [*self.model.parameters(), *self.model.buffers()]
        self.store.storages_of_model = {storage_id(t) for t in of_model if is_plain(t)}
        this = ForwardPass(self.store, self._names, self.exclude, self.observer)
        self.stats = this.stats
        with ExitStack() as stack:
            stack.enter_context(saved_tensors_hooks(this.pack, Saved.open))
            stack.enter_context(this.operation)
            self._entered.stack, self._entered.this = stack.pop_all(), this
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack: ExitStack = self._entered.stack
        this: ForwardPass = self._entered.this
        self._entered.stack = self._entered.this = None
        stack.__exit__(kind, error, trace)
        this.close()
        if this.unused and error is None:
            pattern = min(this.unused)
            places = dict.fromkeys(f"{row.module}:{row.operation}" for row in this.stats.rows)
            raise ConfigurationError(f"exclude={pattern!r} matches nothing: {did_you_mean(pattern, places)}")

    def adapt(self, loss_fn: Callable[[], Tensor], probes: int = 2) -> dict[str, int]:
        """Measure how much each tensor's rounding moves the gradient, and assign new widths and groups.

            c_l = E_v ‖D_l^½ ∂⟨g, v⟩/∂h_l‖²,  v random signs
            minimise Σ c_l / (2ᵇˡ - 1)²  subject to  Σ b_l n_l ≤ b Σ n_l

        One forward pass, one backward pass, and `probes` backward passes through it measure all tensors,
        with saved tensors in 8 bits. If an operation cannot be differentiated twice, groups of similar
        tensors are rounded again instead, one pass for each group. Random states, buffers and `.grad` do not
        change. In a process group every process calls it with its own batch, and all assign the same widths;
        `loss_fn` then runs the model itself, not its DDP wrapper.

        This first-order estimate is exact only for inputs of linear maps and convolutions. Elsewhere it can
        be wrong, and depth amplifies the error. So four allocations are tried, with two passes each: the
        optimum of the estimate; the same with at least two bits for those other tensors; that again with
        the groups that the formulas suggest; and equal widths. The best one is used.

        Args:
            loss_fn: Runs a forward pass, outside this compressor, and returns the loss.
            probes: Vectors of random signs, at least 1.

        Returns:
            The widths, by "module:operation:number"; 32 means that a tensor is kept unchanged.

        Raises:
            ConfigurationError: The level's widths are fixed, or the forward pass saved nothing.

        Source: Liu et al. 2022 (arXiv 2206.11357), section 5; the released code takes three forward and
        backward passes for every tensor.
        """
        if not self.level.automatic:
            raise ConfigurationError("this level's widths are fixed: use L2, L2.1, L2.2, L3 or bits=")
        check_number("probes", probes, at_least=1)
        assignment = assigned(self, loss_fn, probes)
        self.widths, self.ways = assignment["widths"], assignment["ways"]
        self.log.append({**assignment, "widths": dict(self.widths), "ways": dict(self.ways)})
        return self.widths

    def with_level(self, level: str) -> ActivationCompressor:
        """Return a compressor of the same model with these settings and another level."""
        return ActivationCompressor(self.model, level, **self._settings)

    def state_dict(self) -> dict[str, Any]:
        """Return how many tensors were rounded, widths and ways to group, and the log of measurements."""
        return {
            "drawn": self.store.draws.drawn,
            "widths": dict(self.widths),
            "ways": dict(self.ways),
            "log": list(self.log),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()` of another run."""
        self.store.draws.drawn = state["drawn"]
        self.widths, self.ways = dict(state["widths"]), dict(state.get("ways", {}))
        self.log = list(state["log"])


def _is_compiled(module: nn.Module) -> bool:
    """Return whether `torch.compile` or `module.compile` was called on a module."""
    from torch._dynamo import OptimizedModule  # loads the compiler

    return isinstance(module, OptimizedModule) or vars(module).get("_compiled_call_impl") is not None


@explain_arguments
def compress_activations(
    model: nn.Module, level: str = "L1", **settings: Unpack[Settings]
) -> ActivationCompressor:
    """Return a compressor for one forward pass; arguments as for `ActivationCompressor`.

    Each call rounds with different random numbers, even with the same seed.

    Examples:
        >>> layer = torch.nn.Linear(64, 64)
        >>> with compress_activations(layer, "L1.1") as compressor:
        ...     loss = layer(torch.randn(64, 64)).sigmoid().mean()
        >>> loss.backward()
        >>> round(compressor.stats.ratio, 1)
        1.6
    """
    compressor = ActivationCompressor(model, level, **settings)
    compressor.store.draws.drawn = next(ONE_SHOTS) * TENSORS
    return compressor
