"""Adamax with sensitivity-guided learning rates (SAGE)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from finetune_common.aliases import Settings
from finetune_common.optim import Elsewhere
from sensitivity_lr import rules
from sensitivity_lr.base import SageAdam, Update, branches, sage_scalars

__all__ = ["SageAdamax"]


class SageAdamax(SageAdam):
    """Adamax in which each coordinate's learning rate follows its sensitivity (SAGE).

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        paper:     f = (|I-Î|+s) / (Î+s),  s = 1e-12
        released:  f = |I-Î| / (Î+s),      s = ε²;  1 where I = Î = 0
        θ = (1 - lr λ) θ - f · lr/(1-β₁ᵗ) · m / u,   u = max(β₂ u, |g|+ε)

    The authors' released example fine-tunes BERT-base on MNLI with it: lr 2e-4, β₃ 0.85. The state is
    `exp_avg`, `exp_inf` and `sensitivity` (Î).

    Args:
        params: Parameters, (name, parameter) pairs, or groups. A group with `sage=False` gets plain Adamax,
            in the arithmetic of `torch.optim.Adamax` (with decoupled weight decay); see `sage_param_groups`.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        betas: β₁ and β₂ in [0, 1).
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule, not scaled by f.
        form: "paper" or "released".
        sensitivity_eps: s; None takes the value above.
        legacy: Repeat the released code: θ = θ - f · lr · (m/(u+ε) + λ θ), without bias correction; with
            form="released" a parameter that is 0 stays 0.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so if it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.
        skip_nonfinite: If a gradient is not finite, skip its "group" or the whole "step", and count it in the
            group's `skipped`; the host then waits for the gradients. None uses the gradient as it is.

    Raises:
        ConfigurationError: A setting out of range.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SageAdamax([w], lr=0.1, weight_decay=0.0)
        >>> w.square().sum().backward()
        >>> optimizer.step()  # the first factor is β₃/(1-β₃) = 3, the first Adamax step is lr
        >>> round(w.item(), 4)
        0.7

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 1 with Adamax
    as the base; the released form is that of the authors' code.
    """

    elsewhere = Elsewhere(torch.optim.Adamax, same_if={"weight_decay": 0})

    def base_state(self, group: Settings) -> dict[str, float]:
        """Return Adamax's state."""
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.adamax` and its branches."""
        return rules.adamax, {"legacy": group["legacy"], **branches(group)}

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of `rules.adamax`."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        return {
            "step_size": lr if group["legacy"] else lr / (1 - beta1**step),
            "beta1_complement": 1 - beta1,
            "beta2": beta2,
            "eps": group["eps"],
            "keep": 1 - lr * group["weight_decay"],
            "weight_decay": group["weight_decay"],
            **(sage_scalars(group, group["eps"]) if group["sage"] else {}),
        }
