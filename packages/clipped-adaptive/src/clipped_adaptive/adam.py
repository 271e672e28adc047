"""Adam with gradient clipping inside the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from clipped_adaptive import rules
from clipped_adaptive.base import ClippedAdaptive, Update
from clipped_adaptive.clipping import Level
from finetune_common.aliases import Settings
from finetune_common.optim import Elsewhere
from finetune_common.optim.ops import Divisor
from finetune_common.optim.settings import as_pair, check_betas

__all__ = ["ClippedAdam"]


class ClippedAdam(ClippedAdaptive):
    """Adam on clipped gradients, with decoupled weight decay.

        ĝ = clip(g),   m = β₁ m + (1-β₁) ĝ,   v_t = β₂ v_{t-1} + (1-β₂) η ĝ²
        θ = (1 - lr λ) θ - lr · m̂ / (√v̂ + ε),    v̂ = v_t, or v_{t-1} with delay

    Bias correction divides m by 1-β₁ᵗ, and v by 1-β₂ᵗ: with `legacy` always, else if there is neither delay
    nor an initial value. With `norm`, v is one number for the whole optimizer, computed from ‖ĝ‖² of all
    parameters together, and repeated in each parameter's state (`second_moment`). The gradients in `.grad`
    are not changed. The state is `exp_avg` and (without `norm`) `exp_avg_sq`.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule.
        clip: Which parameters share a norm: "none", "global" (all of the optimizer), "layer" (a group, or
            all groups with the same value of the key `layer`; see `layer_groups`), "local" (each tensor), or
            "elementwise" (values are cut to [-max_norm, max_norm]). Set for the whole optimizer.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        delay: Divide by the previous step's second moment; needs an initial value.
        eta: η > 0, weight of new squares in the second moment.
        initial_second_moment: v_0 ≥ 0, of the squared quantity.
        norm: One second moment for the whole optimizer; all groups must agree on β₂, η, ε, delay, initial
            value and bias correction.
        bias_correction: See above.
        legacy: Repeat the released code: ε is added before bias correction of the root, and decay comes after
            the update: θ = (1 - lr λ) (θ - lr · m̂ √(1-β₂ᵗ) / (√v + ε)). Without clipping this is
            transformers' AdamW until version 4.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so if it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.
        skip_nonfinite: If a gradient is not finite, skip its "group" or the whole "step", and count it in the
            group's `skipped`; the host then waits for the gradients. None: use it as it is.

    Raises:
        ConfigurationError: A setting out of range or unknown, or delay without an initial value.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = ClippedAdam([w], lr=0.1, max_norm=1.0, delay=True, initial_second_moment=1)
        >>> (1000 * w).sum().backward()
        >>> optimizer.step()  # m̂ = ĝ = (0.7071, 0.7071), v_0 = 1
        >>> w.data
        tensor([ 0.9293, -2.0707])

    Source: Chezhegov et al., "Clipping Improves Adam-Norm and AdaGrad-Norm when the Noise Is Heavy-Tailed"
    (ICML 2025, arXiv 2406.04443), Algorithm 2; coordinate-wise as in its experiments. Differs from the
    released code in that delay concerns the second moment only, and (without `legacy`) in ε and decay.
    """

    initial = "initial_second_moment"
    elsewhere = Elsewhere(torch.optim.Adam, same_if={"weight_decay": 0, "decoupled_weight_decay": True})
    agreeing = ("betas", "eta", "eps", "delay", "initial_second_moment", "bias_correction", "legacy")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        clip: str = "local",
        max_norm: Level = 1.0,
        delay: bool = False,
        eta: float = 1.0,
        initial_second_moment: float = 0.0,
        norm: bool = False,
        bias_correction: bool = True,
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
                "eps": eps,
                "weight_decay": weight_decay,
                "delay": delay,
                "eta": eta,
                "initial_second_moment": initial_second_moment,
                "bias_correction": bias_correction,
                "legacy": legacy,
            },
            clip=clip,
            max_norm=max_norm,
            norm=norm,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
            skip_nonfinite=skip_nonfinite,
        )

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        check_betas(group["betas"])
        super().check_group(group)

    def initial_state(self, group: Settings) -> Mapping[str, float]:
        """Return m and v."""
        second = {} if self.norm else {"exp_avg_sq": group["initial_second_moment"]}
        return {"exp_avg": 0.0, **second}

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.adam` or `rules.adam_norm`."""
        return (rules.adam_norm, {}) if self.norm else (rules.adam, {"delay": group["delay"]})

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of the rule."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        step_size = lr / (1 - beta1**step) if group["bias_correction"] else lr
        keep = 1 - lr * group["weight_decay"]
        numbers = {
            # Decay after the update shrinks the update as well.
            "step_size": step_size * keep if group["legacy"] else step_size,
            "beta1_complement": 1 - beta1,
            "keep": keep,
            **self._element_level(),
        }
        if not self.norm:
            numbers |= {
                "beta2": beta2,
                "weight": (1 - beta2) * group["eta"],
                "root": Divisor(self._root(group, step)),
                "eps": self._eps(group, step),
            }
        return numbers

    def _root(self, group: Settings, step: int) -> float:
        begins_at_zero = not group["delay"] and group["initial_second_moment"] == 0
        corrected = group["bias_correction"] and (begins_at_zero or group["legacy"])
        return (1 - group["betas"][1] ** step) ** 0.5 if corrected else 1.0

    def _eps(self, group: Settings, step: int) -> float:
        """Return the term added to √v̂; adding ε to √v instead means adding ε/√(1-β₂ᵗ)."""
        return group["eps"] / self._root(group, step) if group["legacy"] else group["eps"]

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        group = self.param_groups[0]
        beta2, old = group["betas"][1], self._second_moment(squared_norm)
        new = old * beta2 + (1 - beta2) * group["eta"] * squared_norm
        self._keep_second_moment(new)
        root = self._root(group, self._steps)
        return (old if group["delay"] else new).sqrt() / root + self._eps(group, self._steps)
