"""AdamW with sensitivity-guided learning rates (SAGE)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from finetune_common.aliases import Settings
from finetune_common.optim import Elsewhere
from finetune_common.optim.ops import Divisor
from sensitivity_lr import rules
from sensitivity_lr.base import SageAdam, Update, branches, sage_scalars

__all__ = ["SageAdamW"]


class SageAdamW(SageAdam):
    """AdamW in which each coordinate's learning rate follows its sensitivity (SAGE).

        I = |θ g|,   Î = β₃ Î + (1-β₃) I
        paper:     f = (|I-Î|+s) / (Î+s),  s = 1e-12
        released:  f = |I-Ĩ| / (Ĩ+s),      Ĩ = Î/(1-β₃ᵗ),  s = ε²;  1 where I = Ĩ = 0
        θ = (1 - lr λ) θ - f · lr · m̂ / (√v̂ + ε)

    A coordinate learns faster if its sensitivity varies much relative to its average. The paper's first
    factor is β₃/(1-β₃), three by default: use a warm-up. In the released form the first step only fills the
    averages: f = 0. The two forms agree after some ten steps. The state is `exp_avg`, `exp_avg_sq` and
    `sensitivity` (Ĩ in the released form, Î in the paper's).

    Args:
        params: Parameters, (name, parameter) pairs, or groups. A group with `sage=False` gets plain AdamW, in
            the arithmetic of `torch.optim.AdamW`; see `sage_param_groups`.
        lr: Learning rate ≥ 0, a number or a one-element tensor; for SAGE usually 2-5 times AdamW's.
        betas: β₁ and β₂ in [0, 1).
        beta3: β₃ in [0, 1), decay of the average sensitivity; useful values are 0.6-0.9.
        eps: ε ≥ 0, added after bias correction.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule, not scaled by f.
        form: "paper" or "released".
        sensitivity_eps: s; None takes the value above.
        legacy: Repeat the released code: ε before bias correction, decay by the unscheduled learning rate
            on the updated parameter; with form="released" a parameter that is 0 stays 0.
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
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = SageAdamW([w], lr=0.1, beta3=0.75, weight_decay=0.0)
        >>> (w**3).sum().backward()
        >>> optimizer.step()  # the first factor is β₃/(1-β₃) = 3, AdamW's first step is lr
        >>> w.data
        tensor([ 0.7000, -2.3000])

    Source: Liang et al., "No Parameters Left Behind" (ICLR 2022, arXiv 2202.02664), Algorithm 2; the released
    form is that of the authors' code.
    """

    elsewhere = Elsewhere(torch.optim.Adam, same_if={"weight_decay": 0, "decoupled_weight_decay": True})

    def base_state(self, group: Settings) -> dict[str, float]:
        """Return AdamW's state."""
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.adamw` and its branches."""
        return rules.adamw, {"legacy": group["legacy"], **branches(group)}

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of `rules.adamw`."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        root = (1 - beta2**step) ** 0.5
        decayed_by = float(group.get("initial_lr", lr)) if group["legacy"] else lr
        return {
            "step_size": lr / (1 - beta1**step) * (root if group["legacy"] else 1.0),
            "beta1_complement": 1 - beta1,
            "beta2": beta2,
            "beta2_complement": 1 - beta2,
            "root": Divisor(root),
            "eps": group["eps"],
            "keep": 1 - decayed_by * group["weight_decay"],
            **(sage_scalars(group, group["eps"], step) if group["sage"] else {}),
        }
