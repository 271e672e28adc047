"""A stand-in for AGNI's released code, for comparison with its published numbers."""

from __future__ import annotations

import torch

__all__ = ["ReleasedNoise"]


class ReleasedNoise:
    """Draw from the global random stream at every step, and add nothing.

    The released code takes V from a single gradient tensor (under accumulation: from aliases of it), so that
    V = 0 and the noise ε·sqrt(η·V)·‖G‖ is 0.0. Only its draws have an effect: one normal number per element
    from the global stream, which changes the dropout masks of later steps.

    Args:
        optimizer: Any torch optimizer.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._handle = optimizer.register_step_pre_hook(self._draw)

    def remove(self) -> None:
        """Detach."""
        self._handle.remove()

    def _draw(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    torch.randn_like(param.grad)
