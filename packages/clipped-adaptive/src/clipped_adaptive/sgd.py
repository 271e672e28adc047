"""SGD with gradient clipping inside the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from clipped_adaptive import rules
from clipped_adaptive.base import ClippedOptimizer
from clipped_adaptive.clipping import Level
from finetune_common.errors import ConfigurationError, check_number

__all__ = ["ClippedSGD"]


class ClippedSGD(ClippedOptimizer):
    """SGD on clipped gradients, with decoupled weight decay.

        ĝ = clip(g),   u = μ u + ĝ
        θ = (1 - lr λ) θ - lr · u      (Nesterov: ĝ + μ u in place of u)

    The gradients in `.grad` are not changed. The state is `momentum_buffer` (with momentum).

    Args:
        params: Parameters, (name, parameter) pairs, or groups of them.
        lr: Learning rate ≥ 0, a number or a one-element tensor.
        momentum: μ in [0, 1).
        weight_decay: λ ≥ 0, decoupled: follows lr and its schedule.
        nesterov: Look ahead; needs momentum.
        clip: What shares a norm; see `ClippedAdam`.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so where it pays.
        maximize: Step along the gradient.
        stochastic_rounding: Round bfloat16 parameters stochastically.
        skip_nonfinite: If a gradient is not finite, skip its "group" or the whole "step", and count it in the
            group's `skipped`; the host then waits for the gradients. None: use it as it is.

    Raises:
        ConfigurationError: A setting out of range or unknown, or `nesterov` without momentum.

    Examples:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = ClippedSGD([w], lr=0.1, clip="elementwise", max_norm=0.5)
        >>> (100 * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 4)
        0.95
    """

    whole = ("clip", "max_norm")

    def __init__(
        self,
        params: Any,
        lr: Any,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
        clip: str = "local",
        max_norm: Level = 1.0,
        foreach: bool | None = None,
        fused: bool | None = None,
        maximize: bool = False,
        stochastic_rounding: bool = False,
        skip_nonfinite: str | None = None,
    ):
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov},
            clip=clip,
            max_norm=max_norm,
            foreach=foreach,
            fused=fused,
            maximize=maximize,
            stochastic_rounding=stochastic_rounding,
            skip_nonfinite=skip_nonfinite,
        )

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings that cannot be used."""
        check_number("momentum", group["momentum"], at_least=0, below=1)
        if group["nesterov"] and group["momentum"] == 0:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")
        super().check_group(group)

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """The velocity u."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def rule(self, group: Mapping[str, Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        """`rules.sgd`."""
        return rules.sgd, {"nesterov": group["nesterov"]}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """The numbers of `rules.sgd`."""
        lr = float(group["lr"])
        keep = 1 - lr * group["weight_decay"]
        return {"step_size": -lr, "momentum": group["momentum"], "keep": keep, **self._element_level()}
