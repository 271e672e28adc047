"""The methods that the harness itself brings: what one compares with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
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


@dataclass(frozen=True)
class OptimizerOptions:
    """What every optimizer has.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
    """

    lr: float = 5e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, (int, float)):
                    check_number(field.name, number, at_least=0)


@dataclass(frozen=True)
class AdamOptions(OptimizerOptions):
    """Adam and its relatives.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the denominator.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for beta in self.betas:
            check_number("betas", beta, at_least=0, below=1)


@dataclass(frozen=True)
class SGDOptions(OptimizerOptions):
    """Stochastic gradient descent.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        momentum: Decay of the velocity, 0 for none.
        nesterov: Nesterov's form of momentum.
    """

    lr: float = 1e-2
    momentum: float = 0.9
    nesterov: bool = False


@dataclass(frozen=True)
class AdagradOptions(OptimizerOptions):
    """AdaGrad.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        eps: Added to the denominator.
        initial_accumulator_value: Start of the sum of squared gradients.
    """

    lr: float = 5e-3
    eps: float = 1e-10
    initial_accumulator_value: float = 0.0


@dataclass(frozen=True)
class AdadeltaOptions(OptimizerOptions):
    """Adadelta.

    Args:
        lr: Factor of the update, at least 0.
        rho: Decay of both averages.
        eps: Added under both roots.
    """

    lr: float = 1.0
    rho: float = 0.9
    eps: float = 1e-6


@dataclass(frozen=True)
class RMSpropOptions(OptimizerOptions):
    """RMSprop.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        alpha: Decay of the squared gradient.
        eps: Added to the denominator.
        momentum: Decay of the velocity, 0 for none.
    """

    alpha: float = 0.99
    eps: float = 1e-8
    momentum: float = 0.0


@dataclass(frozen=True)
class ASGDOptions(OptimizerOptions):
    """Averaged stochastic gradient descent.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        t0: Step at which averaging starts.
    """

    lr: float = 1e-2
    t0: float = 1e6


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
    """AdamW with its state in 8 bits, from bitsandbytes."""

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
        if next(model.parameters()).device.type == "cpu":
            raise ConfigurationError(
                "optimizer 'adamw-8bit' runs on a GPU, and this run is on the CPU: use --optimizer adamw"
            )
        unnamed = [{**group, "params": [p for _, p in group["params"]]} for group in param_groups]
        return AdamW8bit(unnamed, **asdict(self.options))
