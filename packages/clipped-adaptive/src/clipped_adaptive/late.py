"""Coefficients of tensors clipped by their own norm, computed just before each tensor's update."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from finetune_common.optim import Batch, arithmetic_dtype
from finetune_common.optim.norms import multiplies, norm_of
from finetune_common.optim.run import SMALL, Late

__all__ = ["LateCoefficients"]


class LateCoefficients:
    """Each tensor's factor min(1, L/‖g‖), kept for the report; the gradients themselves are not.

    Computing all norms first would read each gradient from memory twice. A norm that is computed just before
    the update leaves the gradient in the cache. The factors of small tensors are computed at once.

    Args:
        level: L.
        count: Gradients of a step.
    """

    def __init__(self, level: float, count: int) -> None:
        self.level = level
        self.norms = [0.0] * count
        self.factors = [1.0] * count

    @staticmethod
    def possible(batches: Sequence[Batch]) -> bool:
        """Whether all gradients are plain tensors for which a call costs less than a pass over memory."""
        grads = (grad for batch in batches for grad in batch.grads)
        return all(type(grad) is Tensor and multiplies(grad) for grad in grads)

    def coefficients(self, batches: Sequence[Batch]) -> list[Tensor | Late]:
        """Return the factors of gradients on a CPU (`possible`), or what makes them before an update."""
        pairs = [pair for batch in batches for pair in zip(batch.grads, batch.params, strict=True)]
        made: list[Tensor | Late] = []
        for place, (grad, param) in enumerate(pairs):
            make = partial(self._factor, place, grad, arithmetic_dtype(param.dtype))
            made.append(make() if grad.numel() <= SMALL else make)
        return made

    def _factor(self, place: int, grad: Tensor, dtype: torch.dtype) -> Tensor:
        norm = norm_of(grad)
        self.norms[place] = norm
        self.factors[place] = self.level / norm if norm > self.level else 1.0
        return torch.tensor(self.factors[place], dtype=dtype)
