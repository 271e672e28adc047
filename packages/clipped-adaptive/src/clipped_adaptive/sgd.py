"""SGD with gradient clipping inside the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from clipped_adaptive import rules
from clipped_adaptive.base import ClippedOptimizer, Update
from clipped_adaptive.clipping import Level
from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError, check_number
from finetune_common.optim import Elsewhere

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
        nesterov: Nesterov's momentum; needs `momentum` above 0.
        clip: Which parameters share a norm; see `ClippedAdam`.
        max_norm: The level > 0: a number, a function of the step (from 1), or a `RunningQuantile`.
        foreach: Run over lists of tensors.
        fused: Compile into one pass over memory; None does so if it pays.
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

    elsewhere = Elsewhere(torch.optim.SGD, same_if={"momentum": 0, "weight_decay": 0})
    set_once = ("clip", "max_norm")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
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

    def check_group(self, group: Settings) -> None:
        """Refuse settings that cannot be used."""
        check_number("momentum", group["momentum"], at_least=0, below=1)
        if group["nesterov"] and group["momentum"] == 0:
            raise ConfigurationError("nesterov=True with momentum=0.0 does nothing: give a momentum above 0")
        super().check_group(group)

    def initial_state(self, group: Settings) -> Mapping[str, float]:
        """Return the velocity u."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def rule(self, group: Settings) -> tuple[Update, Settings]:
        """Return `rules.sgd` and its branch."""
        return rules.sgd, {"nesterov": group["nesterov"]}

    def scalars(self, group: Settings, step: int) -> Mapping[str, float]:
        """Return the numbers of `rules.sgd`."""
        lr = float(group["lr"])
        keep = 1 - lr * group["weight_decay"]
        return {"step_size": -lr, "momentum": group["momentum"], "keep": keep, **self._element_level()}
