"""AdaGrad with gradient clipping inside the step."""

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

__all__ = ["ClippedAdaGrad"]


class ClippedAdaGrad(ClippedAdaptive):
    """AdaGrad on clipped gradients, with decoupled weight decay.

        ĝ = clip(g),   b_t = b_{t-1} + η ĝ²
        θ = (1 - lr λ) θ - lr · ĝ / (√b + ε),    b = b_t, or b_{t-1} with delay

    With `norm`, b is one number for the whole optimizer, computed from ‖ĝ‖² of all parameters together, and
    repeated in each parameter's state (`second_moment`). The gradients in `.grad` are not changed. The state
    is (without `norm`) `accumulator`.

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        eps: ε ≥ 0, added to the root.
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule.
        clip: Which parameters share a norm; see `ClippedAdam`.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        delay: Divide by the previous step's accumulator; needs an initial value.
        eta: η > 0, weight of new squares in the accumulator.
        initial_accumulator: b_0 ≥ 0, of the squared quantity (the square of the paper's b_0).
        norm: One accumulator for the whole optimizer; all groups must agree on η, ε, delay, initial value.
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
        >>> x = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = ClippedAdaGrad([x], lr=0.5, max_norm=0.5, norm=True, initial_accumulator=9)
        >>> (x**2 / 2).backward()
        >>> optimizer.step()  # 2 - 0.5·0.5/√(9 + 0.25)
        >>> round(x.item(), 4)
        1.9178

    Source: Chezhegov et al., "Clipping Improves Adam-Norm and AdaGrad-Norm when the Noise Is Heavy-Tailed"
    (ICML 2025, arXiv 2406.04443), Algorithm 2; η ≠ 1 is Clip-RAdaGradD of its first version. Differs from
    the released code in that the delayed form steps along the current gradient.
    """

    initial = "initial_accumulator"
    elsewhere = Elsewhere(torch.optim.Adagrad, {"sum": "accumulator"}, same_if={"weight_decay": 0})
    agreeing = ("eta", "eps", "delay", "initial_accumulator")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        *,
        clip: str = "local",
        max_norm: Level = 1.0,
        delay: bool = False,
        eta: float = 1.0,
        initial_accumulator: float = 0.0,
        norm: bool = False,
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
                "eps": eps,
                "weight_decay": weight_decay,
                "delay": delay,
                "eta": eta,
                "initial_accumulator": initial_accumulator,
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

    def initial_state(self, group: Settings) -> Mapping[str, float]:
        """Return b."""
        return {} if self.norm else {"accumulator": group["initial_accumulator"]}

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.adagrad` or `rules.adagrad_norm`."""
        return (rules.adagrad_norm, {}) if self.norm else (rules.adagrad, {"delay": group["delay"]})

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of the rule."""
        lr = float(group["lr"])
        second = {} if self.norm else {"weight": group["eta"], "eps": group["eps"]}
        keep = 1 - lr * group["weight_decay"]
        return {"step_size": lr, "keep": keep, **second, **self._element_level()}

    def _denominator(self, squared_norm: Tensor) -> Tensor:
        group, old = self.param_groups[0], self._second_moment(squared_norm)
        new = old + group["eta"] * squared_norm
        self._keep_second_moment(new)
        return (old if group["delay"] else new).sqrt() + group["eps"]
