"""The entry points of this package. Nothing here imports torch before a method is used."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from finetune_common.aliases import ParamGroup, StateDict
from finetune_common.errors import ConfigurationError, check_choice, check_number
from sensitivity_lr.forms import FORMS

if TYPE_CHECKING:
    import torch

    from sensitivity_lr.analysis import SensitivityRecord, SensitivityTracker

__all__ = [
    "SageAdamOptions",
    "SageAdamWMethod",
    "SageAdamaxMethod",
    "SageSGDMethod",
    "SageSGDOptions",
    "SensitivityMonitor",
    "SensitivityOptions",
]


@dataclass(frozen=True)
class SageAdamOptions:
    """SAGE on AdamW and Adamax.

    Args:
        lr: Learning rate at the top of the schedule, at least 0; usually 2-5 times the plain optimizer's.
        betas: Decay of the first and the second moment, each in [0, 1).
        beta3: Decay of the average sensitivity, in [0, 1); useful values are 0.6-0.9.
        eps: Added to the denominator, at least 0; in the released form at least 1e-18.
        form: The factor of the learning rate: paper or released.
        legacy: Repeat the released code's decay and placement of eps; with form=released zeros stay zero.
        pattern: Regular expression of the parameters SAGE acts on; null for the layers' linear maps.
    """

    lr: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    beta3: float = 0.75
    eps: float = 1e-6
    form: str = "paper"
    legacy: bool = False
    pattern: str | None = None

    def __post_init__(self) -> None:
        _check(self)
        squared = self.form == "released"  # the square is s, which has to be a normal float32
        check_number("eps", self.eps, at_least=1e-18 if squared else 0, below=1e19)
        for beta in self.betas:
            check_number("betas", beta, at_least=0, below=1)


@dataclass(frozen=True)
class SageSGDOptions:
    """SAGE on SGD.

    Args:
        lr: Learning rate at the top of the schedule, at least 0.
        momentum: Decay of the velocity, in [0, 1).
        nesterov: Nesterov's form of momentum.
        beta3: Decay of the average sensitivity, in [0, 1); useful values are 0.6-0.9.
        form: The factor of the learning rate: paper or released.
        pattern: Regular expression of the parameters SAGE acts on; null for the layers' linear maps.
    """

    lr: float = 1e-2
    momentum: float = 0.9
    nesterov: bool = False
    beta3: float = 0.75
    form: str = "paper"
    pattern: str | None = None

    def __post_init__(self) -> None:
        _check(self)
        check_number("momentum", self.momentum, at_least=0, below=1)
        if self.nesterov and not self.momentum:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")


def _check(options: SageAdamOptions | SageSGDOptions) -> None:
    check_number("lr", options.lr, at_least=0, below=2.0**128)  # the range of float32
    check_number("beta3", options.beta3, at_least=0, below=1)
    check_choice("form", options.form, FORMS)
    _check_pattern(options.pattern)


def _check_pattern(pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigurationError(f"pattern={pattern!r} is not a regular expression: {error}") from None


class _SageMethod:
    """Split every group into parameters with and without SAGE, and build the optimizer over the parts."""

    optimizer: ClassVar[str]

    def __init__(self, options: SageAdamOptions | SageSGDOptions) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, param_groups: list[ParamGroup]) -> torch.optim.Optimizer:
        """Return the optimizer over the groups."""
        import sensitivity_lr

        settings = asdict(self.options)
        chosen = set(sensitivity_lr.sage_names(model, settings.pop("pattern")))
        groups = [
            {**group, "params": params, "sage": sage}
            for group in param_groups
            for sage in (True, False)
            if (params := [(name, param) for name, param in group["params"] if (name in chosen) == sage])
        ]
        return getattr(sensitivity_lr, self.optimizer)(groups, **settings)


class SageAdamWMethod(_SageMethod):
    """AdamW with sensitivity-guided learning rates (SAGE)."""

    name, optimizer, Options = "sage-adamw", "SageAdamW", SageAdamOptions


class SageAdamaxMethod(_SageMethod):
    """Adamax with sensitivity-guided learning rates (SAGE)."""

    name, optimizer, Options = "sage-adamax", "SageAdamax", SageAdamOptions


class SageSGDMethod(_SageMethod):
    """SGD with sensitivity-guided learning rates (SAGE)."""

    name, optimizer, Options = "sage-sgd", "SageSGD", SageSGDOptions


@dataclass(frozen=True)
class SensitivityOptions:
    """The distribution of |parameter x gradient|.

    Args:
        every: Record the first step and every so many steps after it, at least 1.
        pattern: Regular expression of the parameters to read; null for all that train.
    """

    every: int = 50
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_number("every", self.every, at_least=1)


class SensitivityMonitor:
    """Record the distribution of sensitivity over training."""

    name, Options = "sensitivity", SensitivityOptions
    not_sharded = "reads whole parameters: leave this monitor out"

    def __init__(self, options: SensitivityOptions) -> None:
        self.options = options

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> SensitivityTracker:
        """Attach a tracker whose newest record goes into `metrics.jsonl`."""
        from sensitivity_lr.analysis import SensitivityTracker

        class Handle(SensitivityTracker):
            reported = 0

            def on_step(self, step: int) -> dict[str, SensitivityRecord]:
                new, self.reported = self.records[self.reported :], len(self.records)
                return {"sensitivity": new[-1]} if new else {}

            def load_state_dict(self, state: StateDict) -> None:
                super().load_state_dict(state)
                self.reported = len(self.records)

        return Handle(model, optimizer, **asdict(self.options))
