"""The methods that the harness itself brings: what one compares with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from finetune_common.errors import ConfigurationError, check_number

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class FullFineTuning:
    """Every parameter trains."""

    name = "full"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def load_kwargs(self) -> dict[str, Any]:
        """Nothing is changed while loading."""
        return {}

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model as it is."""
        return model


class PlainActivations:
    """Saved tensors are kept as they are."""

    name = "none"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def around_forward(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        """Return a context that does nothing."""
        return nullcontext()

    def stats(self) -> dict[str, Any]:
        """Nothing is stored in another form."""
        return {}


def within(default: Any, **interval: float) -> Any:
    """Declare an option whose numbers lie in an interval, in the words of `check_number`."""
    return field(default=default, metadata=interval)


POSITIVE = {"at_least": 0, "below": 1e35}  # no factor made of it leaves float32
DECAY = {"at_least": 0, "below": 1}


@dataclass(frozen=True)
class OptimizerOptions:
    """What every optimizer has.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
    """

    lr: float = within(5e-5, **POSITIVE)

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            for number in value if isinstance(value, tuple) else (value,):
                if option.metadata:
                    check_number(option.name, number, **option.metadata)


@dataclass(frozen=True)
class AdamOptions(OptimizerOptions):
    """Adam and its relatives.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the denominator, at least 0.
    """

    betas: tuple[float, float] = within((0.9, 0.999), **DECAY)
    eps: float = within(1e-8, **POSITIVE)


@dataclass(frozen=True)
class SGDOptions(OptimizerOptions):
    """Stochastic gradient descent.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        momentum: Decay of the velocity, in [0, 1); 0 for none.
        nesterov: Nesterov's form of momentum, which needs one.
    """

    lr: float = within(1e-2, **POSITIVE)
    momentum: float = within(0.9, **DECAY)
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")


@dataclass(frozen=True)
class AdagradOptions(OptimizerOptions):
    """AdaGrad.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        eps: Added to the denominator, at least 0.
        initial_accumulator_value: Start of the sum of squared gradients, at least 0.
    """

    lr: float = within(5e-3, **POSITIVE)
    eps: float = within(1e-10, **POSITIVE)
    initial_accumulator_value: float = within(0.0, **POSITIVE)


@dataclass(frozen=True)
class AdadeltaOptions(OptimizerOptions):
    """Adadelta.

    Args:
        lr: Factor of the update, at least 0.
        rho: Decay of both averages, in [0, 1).
        eps: Added under both roots, at least 0.
    """

    lr: float = within(1.0, **POSITIVE)
    rho: float = within(0.9, **DECAY)
    eps: float = within(1e-6, **POSITIVE)


@dataclass(frozen=True)
class RMSpropOptions(OptimizerOptions):
    """RMSprop.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        alpha: Decay of the squared gradient, in [0, 1).
        eps: Added to the denominator, at least 0.
        momentum: Decay of the velocity, in [0, 1); 0 for none.
    """

    alpha: float = within(0.99, **DECAY)
    eps: float = within(1e-8, **POSITIVE)
    momentum: float = within(0.0, **DECAY)


@dataclass(frozen=True)
class ASGDOptions(OptimizerOptions):
    """Averaged stochastic gradient descent.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        t0: Step at which averaging starts, at least 0.
    """

    lr: float = within(1e-2, **POSITIVE)
    t0: float = within(1e6, **POSITIVE)


class TorchOptimizer:
    """An optimizer of `torch.optim`, found by the class attribute `name_in_torch`."""

    name: ClassVar[str]
    name_in_torch: ClassVar[str]
    Options: ClassVar[type] = AdamOptions
    fixed: ClassVar[dict[str, Any]] = {}

    def __init__(self, options: Any) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer over the groups."""
        import torch

        return getattr(torch.optim, self.name_in_torch)(param_groups, **asdict(self.options), **self.fixed)


class AdamW(TorchOptimizer):
    """Adam with decoupled weight decay, torch's fused kernel."""

    name, name_in_torch, fixed = "adamw", "AdamW", {"fused": True}


class Adam(TorchOptimizer):
    """Adam, torch's fused kernel (weight decay is L2)."""

    name, name_in_torch, fixed = "adam", "Adam", {"fused": True}


class Adamax(TorchOptimizer):
    """Adamax, Adam on the infinity norm (weight decay is L2)."""

    name, name_in_torch = "adamax", "Adamax"


class SGD(TorchOptimizer):
    """Stochastic gradient descent with momentum (weight decay is L2)."""

    name, name_in_torch, Options = "sgd", "SGD", SGDOptions


class ASGD(TorchOptimizer):
    """Averaged stochastic gradient descent (weight decay is L2)."""

    name, name_in_torch, Options = "asgd", "ASGD", ASGDOptions


class Adagrad(TorchOptimizer):
    """AdaGrad (weight decay is L2)."""

    name, name_in_torch, Options = "adagrad", "Adagrad", AdagradOptions


class Adadelta(TorchOptimizer):
    """Adadelta (weight decay is L2)."""

    name, name_in_torch, Options = "adadelta", "Adadelta", AdadeltaOptions


class RMSprop(TorchOptimizer):
    """RMSprop (weight decay is L2)."""

    name, name_in_torch, Options = "rmsprop", "RMSprop", RMSpropOptions


class RAdam(TorchOptimizer):
    """Rectified Adam (weight decay is L2)."""

    name, name_in_torch = "radam", "RAdam"


class NAdam(TorchOptimizer):
    """Adam with Nesterov momentum (weight decay is L2)."""

    name, name_in_torch = "nadam", "NAdam"


class AdamW8bit:
    """AdamW with its state in 8 bits, from bitsandbytes (tensors below 4,096 elements: in 32)."""

    name = "adamw-8bit"
    Options = AdamOptions
    not_sharded = "keeps state in packed bits, which cannot be split: use --optimizer adamw"

    def __init__(self, options: AdamOptions) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer, or say what is missing."""
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ConfigurationError(
                "optimizer 'adamw-8bit' needs bitsandbytes, which is not installed: run "
                "'pip install bitsandbytes' or use --optimizer adamw"
            ) from None
        unnamed = [{**group, "params": [p for _, p in group["params"]]} for group in param_groups]
        return AdamW8bit(unnamed, **asdict(self.options))
