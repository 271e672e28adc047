"""The methods of the activation slot. Nothing here imports torch before a method is used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from activation_compression.levels import find_level
from finetune_common.errors import ConfigurationError, check_number

if TYPE_CHECKING:
    import torch

    from activation_compression.compiled import CompileOptions
    from activation_compression.compressor import ActivationCompressor
    from activation_compression.statistics import Statistics

__all__ = [
    "CheckpointMethod",
    "CompressCheckpointMethod",
    "CompressMethod",
    "CompressOptions",
    "NoOptions",
    "OffloadMethod",
    "OffloadOptions",
]


NOT_COMPILED = "--activation {name} works on eager models: remove --compile, or use --activation compress"


@dataclass(frozen=True)
class CompressOptions:
    """Compression of saved activations.

    Args:
        level: L0 none; lossless: no rounding, the gradient equal bit for bit; L1, L1.1, L1.2 fixed 4, 8, 2
            bits; L2, L2.1, L2.2 automatic, 4, 3, 2 bits on average; L3 automatic 4 bits in host memory; swap
            host memory only; L4bit-swap 4 bits in host memory.
        bits: Automatic precision with this average, in [1, 32]; null for the level's own bits.
        group_size: Elements that share a minimum and a step, at least 1.
        seed: Seed of the rounding, at least 0; null for the run's seed.
        interval: Steps between two measurements of automatic precision, at least 1.
        warmup: Steps before the first measurement, at least 0.
        probes: Random directions of a measurement, at least 1.
        exclude: Patterns (`*`, `?`) of "module:operation" whose tensors are kept unchanged.
        derive: Whether values that follow from others are computed again; false stores all, as published.
    """

    level: str = "L1"
    bits: float | None = None
    group_size: int = 256
    seed: int | None = None
    interval: int = 1000
    warmup: int = 0
    probes: int = 2
    exclude: tuple[str, ...] = ()
    derive: bool = True

    def __post_init__(self) -> None:
        find_level(self.level, self.bits)
        check_number("group_size", self.group_size, at_least=1)
        if self.seed is not None:
            check_number("seed", self.seed, at_least=0, below=2**63)
        check_number("interval", self.interval, at_least=1)
        check_number("warmup", self.warmup, at_least=0)
        check_number("probes", self.probes, at_least=1)


@dataclass(frozen=True)
class OffloadOptions:
    """Saved activations in host memory.

    Args:
        level: swap unchanged; L4bit-swap compressed to 4 bits; L3 to 4 bits on average (automatic precision).
    """

    level: str = "swap"

    def __post_init__(self) -> None:
        from finetune_common.errors import check_choice

        check_choice("level", self.level, ("swap", "L4bit-swap", "L3"))


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class CompressMethod:
    """Saved activations in 1 to 8 bits, with unbiased gradients (GACT)."""

    name = "compress"
    Options: type = CompressOptions

    def __init__(self, options: CompressOptions) -> None:
        self.options = options
        self.compressor: ActivationCompressor | None = None
        self._compiled: CompileOptions | None = None
        self._state: Mapping[str, object] | None = None

    def compile_options(self) -> CompileOptions:
        """Return options for `torch.compile` with which the compiled model compresses its activations."""
        import torch

        from activation_compression.compiled import compile_options

        options = self.options
        find_level(options.level, options.bits)
        if options.bits is not None:
            raise ConfigurationError(
                f"bits={options.bits} measures widths, which needs an eager model: remove it or --compile"
            )
        seed = torch.initial_seed() % 2**63 if options.seed is None else options.seed
        self._compiled = compile_options(
            options.level,
            group_size=options.group_size,
            seed=seed,
            exclude=options.exclude,
            derive=options.derive,
        )
        if self._state is not None:
            self._compiled.load_state_dict(self._state)
        return self._compiled

    def _compressor_of(self, model: torch.nn.Module) -> ActivationCompressor:
        if self.compressor is None or self.compressor.model is not model:
            import torch

            from activation_compression.compressor import ActivationCompressor

            options = self.options
            seed = torch.initial_seed() % 2**63 if options.seed is None else options.seed
            self.compressor = ActivationCompressor(
                model,
                options.level,
                bits=options.bits,
                group_size=options.group_size,
                seed=seed,
                exclude=options.exclude,
                derive=options.derive,
            )
            if self._state is not None:
                self.compressor.load_state_dict(self._state)
        return self.compressor

    @property
    def not_sharded(self) -> str | None:
        """Why parameters may not be sharded: `adapt` differentiates with respect to whole parameters."""
        if not find_level(self.options.level, self.options.bits).automatic:
            return None
        return "measures its widths by gradients of whole parameters: use a fixed level such as L1"

    def around_forward(self, model: torch.nn.Module) -> AbstractContextManager[object]:
        """Return the context in which activations are compressed; a compiled model needs none."""
        return nullcontext() if self._compiled is not None else self._compressor_of(model)

    def after_backward(self, step: int, loss_fn: Callable[[], torch.Tensor]) -> None:
        """Measure and assign widths if the level is automatic and a measurement is due."""
        due = step > self.options.warmup and (step - 1 - self.options.warmup) % self.options.interval == 0
        if due and self.compressor is not None and self.compressor.level.automatic:
            self.compressor.adapt(loss_fn, probes=self.options.probes)

    @property
    def _active(self) -> CompileOptions | ActivationCompressor | None:
        return self._compiled if self._compiled is not None else self.compressor

    def stats(self) -> dict[str, object]:
        """Return `original_bytes`, `stored_bytes` and `rows` of the last forward pass."""
        return _totals(self._active.stats) if self._active is not None else {}

    def state_dict(self) -> dict[str, object]:
        """Return the compressor's state; before the first forward pass, the loaded one."""
        return self._active.state_dict() if self._active is not None else dict(self._state or {})

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from `state_dict()` of another run."""
        self._state = state or None
        if self._active is not None and state:
            self._active.load_state_dict(state)


def _totals(stats: Statistics) -> dict[str, object]:
    return {
        "stored_bytes": stats.stored_bytes,
        "original_bytes": stats.original_bytes,
        "rows": [asdict(row) for row in stats.rows],
    }


class CompressCheckpointMethod(CompressMethod):
    """Blocks run again in backward, and their inputs are compressed."""

    name = "compress+checkpoint"

    def compile_options(self) -> CompileOptions:
        """Refuse: in a compiled model the compiler chooses what runs again."""
        raise ConfigurationError(NOT_COMPILED.format(name=self.name))

    @contextmanager
    def around_forward(self, model: torch.nn.Module) -> Generator[object]:
        """Return the context in which blocks are checkpointed and their inputs compressed."""
        from activation_compression.checkpointing import checkpoint_blocks

        with self._compressor_of(model) as compressor, checkpoint_blocks(model):
            yield compressor


class OffloadMethod(CompressMethod):
    """Saved activations in pinned host memory, fetched before backward needs them."""

    name = "offload"
    Options = OffloadOptions

    def __init__(self, options: OffloadOptions) -> None:
        super().__init__(CompressOptions(level=options.level))

    def compile_options(self) -> CompileOptions:
        """Refuse: the compiled graph would wait for every copy."""
        raise ConfigurationError(NOT_COMPILED.format(name=self.name))


class CheckpointMethod:
    """Blocks keep only their inputs, and run again in backward."""

    name = "checkpoint"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options
        self._compressor: ActivationCompressor | None = None

    def compile_options(self) -> CompileOptions:
        """Refuse: in a compiled model the compiler chooses what runs again."""
        raise ConfigurationError(NOT_COMPILED.format(name=self.name))

    @contextmanager
    def around_forward(self, model: torch.nn.Module) -> Generator[None]:
        """Return the context in which blocks are checkpointed."""
        from activation_compression.checkpointing import checkpoint_blocks
        from activation_compression.compressor import ActivationCompressor

        if self._compressor is None or self._compressor.model is not model:
            self._compressor = ActivationCompressor(model, "L0")
        with self._compressor, checkpoint_blocks(model):
            yield

    def after_backward(self, step: int, loss_fn: Callable[[], torch.Tensor]) -> None:
        """Do nothing."""

    def stats(self) -> dict[str, object]:
        """Return the saved bytes of the last forward pass: inputs of blocks, and tensors outside blocks."""
        return _totals(self._compressor.stats) if self._compressor is not None else {}
