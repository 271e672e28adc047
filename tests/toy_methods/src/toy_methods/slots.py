"""The entry points: options without torch, and methods that import their work when they do it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_common.errors import check_number

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ToyAdaptationOptions:
    """What trains.

    Args:
        layers: Encoder layers whose parameters train, besides the head.
    """

    layers: tuple[int, ...] = (1,)


class ToyAdaptation:
    """The head and some layers train."""

    name = "toy"
    Options = ToyAdaptationOptions

    def __init__(self, options: ToyAdaptationOptions) -> None:
        self.options = options

    def load_kwargs(self) -> dict[str, Any]:
        return {}

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        wanted = ["classifier.", *(f".layer.{layer}." for layer in self.options.layers)]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in wanted))
        return model


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class ToyActivation:
    """Saved float32 tensors are kept in bfloat16."""

    name = "toy"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        from toy_methods.halves import Halves

        self.halves = Halves()

    def around_forward(self, model: torch.nn.Module) -> AbstractContextManager[Any]:
        return self.halves.around_forward()

    def after_backward(self, step: int, loss_fn: Any) -> None:
        self.halves.after_backward(step, loss_fn)

    def stats(self) -> dict[str, Any]:
        return {"stored_bytes": self.halves.stored_bytes}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.halves.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.halves.steps = state["steps"]


@dataclass(frozen=True)
class ToyGradientOptions:
    """Noise.

    Args:
        size: Standard deviation of what is added, at least 0.
        shift: Constant that is added.
        seed: Of the method's own generator.
    """

    size: float = 0.01
    shift: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("size", self.size, at_least=0)


class ToyGradient:
    """Normal noise and a constant are added to every gradient."""

    name = "toy"
    Options = ToyGradientOptions

    def __init__(self, options: ToyGradientOptions) -> None:
        self.options = options

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> Any:
        from toy_methods.gradients import Noise

        return Noise(optimizer, self.options.size, self.options.shift, self.options.seed)


@dataclass(frozen=True)
class ToyScaleOptions:
    """Scaling.

    Args:
        factor: What every gradient is multiplied by.
    """

    factor: float = 0.5


class ToyScale:
    """Every gradient is multiplied by a factor."""

    name = "toy-scale"
    Options = ToyScaleOptions

    def __init__(self, options: ToyScaleOptions) -> None:
        self.options = options

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> Any:
        from toy_methods.gradients import Scale

        return Scale(optimizer, self.options.factor)


@dataclass(frozen=True)
class ToyOptimizerOptions:
    """Momentum of signs.

    Args:
        lr: Step size, at least 0.
        decay: Decay of the momentum, in [0, 1).
    """

    lr: float = 1e-3
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_number("lr", self.lr, at_least=0)
        check_number("decay", self.decay, at_least=0, below=1)


class ToyOptimizer:
    """Steps along the sign of the momentum."""

    name = "toy"
    Options = ToyOptimizerOptions

    def __init__(self, options: ToyOptimizerOptions) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, param_groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from toy_methods.signs import SignMomentum

        return SignMomentum(param_groups, self.options.lr, self.options.decay)


class ToyMonitor:
    """The first gradient of the head, and how often it was looked at."""

    name = "toy"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        from toy_methods.gradients import Watch

        return Watch(model)
