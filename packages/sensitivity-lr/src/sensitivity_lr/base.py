"""The base classes of the SAGE optimizers: settings, `sage=False` groups, and state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from finetune_common.aliases import ParamGroup, Settings
from finetune_common.errors import check_choice, check_number
from finetune_common.optim import ElementwiseOptimizer
from finetune_common.optim.ops import Value
from finetune_common.optim.settings import as_pair, check_betas
from sensitivity_lr.forms import FORMS

__all__ = ["SageAdam", "SageOptimizer", "Update", "branches", "check_sage", "sage_scalars"]

Update = Callable[..., tuple[Value, ...]]
"""An update rule: parameter, gradient and state → new parameter and new state."""

SMALLEST_S = 1e-37
"""The small number s has to be a normal float32."""


def check_sage(group: Settings, eps: float) -> None:
    """Refuse settings of a group that SAGE cannot use.

    Args:
        group: With `beta3`, `form`, `sensitivity_eps`.
        eps: The base optimizer's ε, which determines s in the released form.

    Raises:
        ConfigurationError: Names the value and the legal interval.
    """
    check_number("beta3", group["beta3"], at_least=0, below=1)
    check_choice("form", group["form"], FORMS)
    check_number("sensitivity_eps", _small_number(group, eps), at_least=SMALLEST_S)


def _small_number(group: Settings, eps: float) -> float:
    if group["sensitivity_eps"] is not None:
        return group["sensitivity_eps"]
    return eps**2 if group["form"] == "released" else 1e-12


def sage_scalars(group: Settings, eps: float, correct_from_step: int | None = None) -> dict[str, float]:
    """Return the numbers of `rules.sage_factor`.

    Args:
        group: With `beta3`, `form`, `sensitivity_eps`.
        eps: The base optimizer's ε.
        correct_from_step: The step t, if the released form uses the bias-corrected average.
    """
    beta3 = group["beta3"]
    corrected = correct_from_step is not None and group["form"] == "released"
    weight = (1 - beta3) / (1 - beta3**correct_from_step) if corrected else 1 - beta3
    return {"weight": weight, "remainder": 1 - weight, "s": _small_number(group, eps)}


def branches(group: Settings) -> dict[str, str | bool]:
    """Return the settings that choose a branch of `rules.sage_factor`."""
    if not group["sage"]:
        return {}
    zeros_stay = group["form"] == "released" and group.get("legacy", False)
    return {"form": group["form"], "zeros_stay": zeros_stay}


class SageOptimizer(ElementwiseOptimizer):
    """The base class of the three optimizers: settings of SAGE, `sage=False` groups, and state."""

    base_state: Callable[[Settings], dict[str, float]]

    def __init__(
        self,
        params: ParamsT,
        defaults: ParamGroup,
        *,
        form: str,
        sensitivity_eps: float | None,
        **running: Any,
    ):
        settings = {"form": form, "sensitivity_eps": sensitivity_eps, "sage": True}
        super().__init__(params, {**defaults, **settings}, **running)

    def initial_state(self, group: Settings) -> Mapping[str, float]:
        """Return the state of the base optimizer, and Î if SAGE is on."""
        return self.base_state(group) | ({"sensitivity": 0.0} if group["sage"] else {})

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        check_number("weight_decay", group["weight_decay"], at_least=0)
        if group["sage"]:
            check_sage(group, group.get("eps", 1e-6))


class SageAdam(SageOptimizer):
    """The common settings of SageAdamW and SageAdamax."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 0.75,
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        form: str = "paper",
        sensitivity_eps: float | None = None,
        legacy: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
        skip_nonfinite: str | None = None,
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": as_pair(betas),
                "beta3": beta3,
                "eps": eps,
                "weight_decay": weight_decay,
                "legacy": legacy,
            },
            form=form,
            sensitivity_eps=sensitivity_eps,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
            skip_nonfinite=skip_nonfinite,
        )

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        check_number("eps", group["eps"], at_least=0)
        check_betas(group["betas"])
        super().check_group(group)
