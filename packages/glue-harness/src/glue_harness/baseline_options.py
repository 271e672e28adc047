"""Settings of the harness's own optimizers. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from finetune_common.errors import ConfigurationError, check_number


def within(default: Any, **interval: float) -> Any:
    """Declare a numeric option with the limits that `check_number` takes."""
    return field(default=default, metadata=interval)


POSITIVE = {"at_least": 0, "below": 1e35}  # keeps factors computed from it within float32
DECAY = {"at_least": 0, "below": 1}


@dataclass(frozen=True)
class OptimizerOptions:
    """Options of every optimizer.

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
class EightBitAdamOptions(AdamOptions):
    """AdamW in 8 bits.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        betas: Decay of the first and the second moment, each in [0, 1).
        eps: Added to the denominator, at least 0.
        paged: Let state move to the host's memory where a GPU's is full; without a GPU it is there anyway.
    """

    paged: bool = False


@dataclass(frozen=True)
class EightBitLionOptions(OptimizerOptions):
    """Lion in 8 bits (Chen et al. 2023, arXiv 2302.06675).

    Args:
        lr: Learning rate at the top of the schedule, at least 0; a third to a tenth of AdamW's.
        betas: Decay in the update and of the momentum, each in [0, 1).
        paged: Let state move to the host's memory where a GPU's is full; without a GPU it is there anyway.
    """

    lr: float = within(1e-5, **POSITIVE)
    betas: tuple[float, float] = within((0.9, 0.99), **DECAY)
    paged: bool = False


@dataclass(frozen=True)
class SGDOptions(OptimizerOptions):
    """Stochastic gradient descent.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        momentum: Decay of the velocity, in [0, 1); 0 for none.
        nesterov: Nesterov's form of momentum, which needs momentum above 0.
    """

    lr: float = within(1e-2, **POSITIVE)
    momentum: float = within(0.9, **DECAY)
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ConfigurationError("nesterov=True has no effect with momentum=0.0: give a momentum above 0")


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
