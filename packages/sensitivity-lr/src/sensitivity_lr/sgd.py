"""SGD with sensitivity-guided learning rates (SAGE)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError, check_number
from finetune_common.optim import Elsewhere
from sensitivity_lr import rules
from sensitivity_lr.base import SageOptimizer, Update, branches, sage_scalars

__all__ = ["SageSGD"]


class SageSGD(SageOptimizer):
    """SGD in which each coordinate's learning rate follows its sensitivity (SAGE).

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        paper:  f = (|I-Î|+s) / (Î+s)        released:  f = |I-Î| / (Î+s), and 1 where I = Î = 0
        b = μ b + g,   θ = (1 - lr λ) θ - f · lr · b      (Nesterov: g + μ b in place of b)

    The state is `momentum_buffer` (with momentum) and `sensitivity` (Î).

    Args:
        params: Parameters, (name, parameter) pairs, or groups. A group with `sage=False` gets plain SGD, in
            the arithmetic of `torch.optim.SGD` (with decoupled weight decay).
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        momentum: μ in [0, 1).
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule, not scaled by f.
        nesterov: Nesterov's momentum; needs `momentum` above 0.
        form: "paper" or "released".
        sensitivity_eps: s; None means 1e-12.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so if it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.
        skip_nonfinite: If a gradient is not finite, skip its "group" or the whole "step", and count it in the
            group's `skipped`; the host then waits for the gradients. None uses the gradient as it is.

    Raises:
        ConfigurationError: A setting out of range, or `nesterov` without momentum.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SageSGD([w], lr=0.1, momentum=0.9)
        >>> w.square().sum().backward()
        >>> optimizer.step()  # f = 3, g = 2
        >>> round(w.item(), 4)
        0.4

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 1.
    """

    elsewhere = Elsewhere(torch.optim.SGD, same_if={"momentum": 0, "weight_decay": 0})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.0,
        beta3: float = 0.75,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        form: str = "paper",
        sensitivity_eps: float | None = None,
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
                "momentum": momentum,
                "beta3": beta3,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
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
        check_number("momentum", group["momentum"], at_least=0, below=1)
        if group["nesterov"] and group["momentum"] == 0:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")
        super().check_group(group)

    def base_state(self, group: Settings) -> dict[str, float]:
        """Return SGD's state."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.sgd` and its branches."""
        base = {
            "has_momentum": group["momentum"] != 0,
            "nesterov": group["nesterov"],
            "sage_on": group["sage"],
        }
        return rules.sgd, {**base, **branches(group)}

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of `rules.sgd`."""
        lr = float(group["lr"])
        return {
            "step_size": -lr,
            "momentum": group["momentum"],
            "keep": 1 - lr * group["weight_decay"],
            **(sage_scalars(group, 1e-6) if group["sage"] else {}),
        }
