"""The entry points of this package. Nothing here imports torch before a method is used."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from clipped_adaptive.clips import CLIPS
from finetune_common.aliases import ParamGroup
from finetune_common.errors import ConfigurationError, check_choice, check_number

if TYPE_CHECKING:
    import torch

    from clipped_adaptive.heavy_tails import TailMonitor

__all__ = [
    "ClippedAdaGradMethod",
    "ClippedAdaGradOptions",
    "ClippedAdamMethod",
    "ClippedAdamOptions",
    "ClippedSGDMethod",
    "ClippedSGDOptions",
    "TailsMonitor",
    "TailsOptions",
]

END = 2.0**128
"""The range of float32 ends here."""


@dataclass(frozen=True)
class ClippedAdamOptions:
    """Adam on clipped gradients.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the denominator, at least 0.
        clip: Which parameters share a norm: none, global, layer, local (each tensor) or elementwise.
        max_norm: Clip level, above 0.
        quantile: Use this quantile of past norms as the clip level instead of max_norm, in (0, 1].
        delay: Divide by the previous step's second moment; needs an initial value.
        eta: Weight of new squares in the second moment, above 0.
        initial_second_moment: Start of the second moment, at least 0.
        norm: One second moment for all parameters.
        bias_correction: Correct the moments for their start at zero.
        legacy: Add eps before bias correction and decay after the update, as the released code does.
    """

    lr: float = 5e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    clip: str = "local"
    max_norm: float = 1.0
    quantile: float | None = None
    delay: bool = False
    eta: float = 1.0
    initial_second_moment: float = 0.0
    norm: bool = False
    bias_correction: bool = True
    legacy: bool = False

    def __post_init__(self) -> None:
        _check(self)
        _check_delay(self.delay, "initial_second_moment", self.initial_second_moment)
        check_number("eta", self.eta, above=0, below=END)
        for beta in self.betas:
            check_number("betas", beta, at_least=0, below=1)


@dataclass(frozen=True)
class ClippedAdaGradOptions:
    """AdaGrad on clipped gradients.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        eps: Added to the denominator, at least 0.
        clip: Which parameters share a norm: none, global, layer, local (each tensor) or elementwise.
        max_norm: Clip level, above 0.
        quantile: Use this quantile of past norms as the clip level instead of max_norm, in (0, 1].
        delay: Divide by the previous step's accumulator; needs an initial value.
        eta: Weight of new squares in the accumulator, above 0.
        initial_accumulator: Start of the sum of squares, at least 0.
        norm: One accumulator for all parameters.
    """

    lr: float = 5e-3
    eps: float = 1e-10
    clip: str = "local"
    max_norm: float = 1.0
    quantile: float | None = None
    delay: bool = False
    eta: float = 1.0
    initial_accumulator: float = 0.0
    norm: bool = False

    def __post_init__(self) -> None:
        _check(self)
        _check_delay(self.delay, "initial_accumulator", self.initial_accumulator)
        check_number("eta", self.eta, above=0, below=END)


@dataclass(frozen=True)
class ClippedSGDOptions:
    """SGD on clipped gradients.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        momentum: Decay of the velocity, in [0, 1).
        nesterov: Nesterov's form of momentum.
        clip: Which parameters share a norm: none, global, layer, local (each tensor) or elementwise.
        max_norm: Clip level, above 0.
        quantile: Use this quantile of past norms as the clip level instead of max_norm, in (0, 1].
    """

    lr: float = 1e-2
    momentum: float = 0.9
    nesterov: bool = False
    clip: str = "local"
    max_norm: float = 1.0
    quantile: float | None = None

    def __post_init__(self) -> None:
        _check(self)
        check_number("momentum", self.momentum, at_least=0, below=1)
        if self.nesterov and not self.momentum:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")


Options = ClippedAdamOptions | ClippedAdaGradOptions | ClippedSGDOptions


def _check(options: Options) -> None:
    check_number("lr", options.lr, at_least=0, below=END)
    if not isinstance(options, ClippedSGDOptions):
        check_number("eps", options.eps, at_least=0, below=END)
    check_choice("clip", options.clip, CLIPS)
    check_number("max_norm", options.max_norm, above=0)
    if options.quantile is not None:
        check_number("quantile", options.quantile, above=0, at_most=1)
        if options.clip in ("none", "elementwise"):
            raise ConfigurationError(
                f"quantile={options.quantile} needs norms, and clip={options.clip!r} has none: use "
                "clip=global, layer or local"
            )


def _check_delay(delay: bool, name: str, initial: float) -> None:
    check_number(name, initial, at_least=0, below=END)
    if delay and initial == 0:
        raise ConfigurationError(
            f"delay=True with {name}=0 divides the first step by nothing: give {name}=1e-5"
        )


class _ClippedMethod:
    """Build the optimizer; with clip=layer every group is split by the layers of the model."""

    optimizer: ClassVar[str]

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def clips_at(self) -> float | None:
        """The clip level; None if it is not fixed."""
        fixed = self.options.clip != "none" and self.options.quantile is None
        return self.options.max_norm if fixed else None

    def build(self, model: torch.nn.Module, param_groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """Return the optimizer over the groups."""
        import clipped_adaptive
        from clipped_adaptive.layers import split_by_layer

        settings = {field.name: getattr(self.options, field.name) for field in fields(self.options)}
        quantile = settings.pop("quantile")
        if quantile is not None:
            settings["max_norm"] = clipped_adaptive.RunningQuantile(quantile)
        if settings["clip"] == "layer":
            names = [name for name, _ in model.named_parameters()]
            param_groups = split_by_layer(param_groups, names=names)
        return getattr(clipped_adaptive, self.optimizer)(param_groups, **settings)


class ClippedAdamMethod(_ClippedMethod):
    """Adam on clipped gradients: global, by layer, by tensor or by element; delayed and scalar forms."""

    name, optimizer, Options = "clipped-adam", "ClippedAdam", ClippedAdamOptions


class ClippedAdaGradMethod(_ClippedMethod):
    """AdaGrad on clipped gradients: global, by layer, by tensor or by element; delayed and scalar forms."""

    name, optimizer, Options = "clipped-adagrad", "ClippedAdaGrad", ClippedAdaGradOptions


class ClippedSGDMethod(_ClippedMethod):
    """SGD on clipped gradients: global, by layer, by tensor or by element."""

    name, optimizer, Options = "clipped-sgd", "ClippedSGD", ClippedSGDOptions


@dataclass(frozen=True)
class TailsOptions:
    """Measure the tails of the gradient noise.

    Args:
        every: Steps between measurements.
        batches: How many of the last batches to measure, at least 8; two passes each.
    """

    every: int = 200
    batches: int = 32

    def __post_init__(self) -> None:
        check_number("every", self.every, at_least=1)
        check_number("batches", self.batches, at_least=8)


class TailsMonitor:
    """Outlier ratios and tail index of the gradient noise over the last batches."""

    name, Options = "tails", TailsOptions
    not_sharded = "measures gradients of whole parameters: leave this monitor out"

    def __init__(self, options: TailsOptions) -> None:
        self.options = options

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> TailMonitor:
        """Attach to the model."""
        from clipped_adaptive.heavy_tails import TailMonitor

        return TailMonitor(model, every=self.options.every, batches=self.options.batches)
