"""What noise does to a run, step by step: its size beside the gradient's, and how far the parameters move."""

from __future__ import annotations

import torch
from torch import Tensor

from finetune_common.arguments import explain_arguments
from noise_injection import kernels
from noise_injection.attachment import attached
from noise_injection.shards import flat, shard_groups, sum_over_shards

__all__ = ["GradientNoiseMonitor"]


@explain_arguments
class GradientNoiseMonitor:
    """Record the noise-to-gradient ratio ‖noise‖/‖G‖ and the effective step size ‖Δθ‖ of every step.

    Both norms are over all parameters; Δθ is the change that the optimizer's step makes to them. It costs a
    copy of the parameters, and of one gradient tensor at a time.

    Args:
        optimizer: The optimizer. Attach noise to it first, if any.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(4))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> monitor = GradientNoiseMonitor(optimizer)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> monitor.on_step(1)
        {'effective_step_size': 1.0}
        >>> monitor.remove()
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._noises = attached(optimizer)
        for noise in self._noises:
            noise.measured = True
        self._before: list[tuple[Tensor, Tensor]] = []
        self._moved: float | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def on_step(self, step: int) -> dict[str, float]:
        """Return the last step's values; nothing if the step was skipped (an overflow under a loss scale).

        Returns:
            `effective_step_size`, and `noise_to_gradient` (with several noises `noise_to_gradient.0`, …).
        """
        if self._moved is None:
            return {}
        values = {"effective_step_size": self._moved}
        for i, noise in enumerate(self._noises):
            ratio = noise.noise_to_gradient()
            if ratio is not None:
                values["noise_to_gradient" + (f".{i}" if len(self._noises) > 1 else "")] = ratio
        self._moved = None
        return values

    def remove(self) -> None:
        """Detach."""
        for handle in self._handles:
            handle.remove()
        for noise in self._noises:
            noise.measured = False

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._before = [(p, flat(p).clone()) for p in parameters]

    @torch.no_grad()
    def _after_step(self, *_: object) -> None:
        squares = [_squared_distance(flat(param), before) for param, before in self._before]
        totals = sum_over_shards(torch.stack(squares), [shard_groups(param) for param, _ in self._before])
        self._moved = float(totals.sum().sqrt())
        self._before = []


def _squared_distance(new: Tensor, old: Tensor) -> Tensor:
    difference = new.double() - old.double() if new.dtype == torch.float64 else new.float() - old.float()
    return kernels.sums(difference, None, difference.dtype).to("cpu", torch.float64)
