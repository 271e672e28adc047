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
    """Each tensor's factor min(1, L/‖g‖), kept for the report.

    Computing all norms first would read each gradient from memory twice. A norm that is computed just before
    the update leaves the gradient in the cache. The factors of small tensors are computed at once.

    Args:
        batches: Plain tensors on a CPU; see `possible`.
        level: L.
    """

    def __init__(self, batches: Sequence[Batch], level: float) -> None:
        self.level = level
        self.grads = [grad for batch in batches for grad in batch.grads]
        self.dtypes = [arithmetic_dtype(param.dtype) for batch in batches for param in batch.params]
        self.norms = [0.0] * len(self.grads)
        self.factors = [1.0] * len(self.grads)
        early = [i for i, grad in enumerate(self.grads) if grad.numel() <= SMALL]
        for i in early:
            self._note(i, norm_of(self.grads[i]))
        self.coefficients: list[Tensor | Late] = [partial(self._late, i) for i in range(len(self.grads))]
        for i in early:
            self.coefficients[i] = torch.tensor(self.factors[i], dtype=self.dtypes[i])

    @staticmethod
    def possible(batches: Sequence[Batch]) -> bool:
        """Whether all gradients are plain tensors for which a call costs less than a pass over memory."""
        grads = (grad for batch in batches for grad in batch.grads)
        return all(type(grad) is Tensor and multiplies(grad) for grad in grads)

    def _late(self, i: int) -> Tensor:
        self._note(i, norm_of(self.grads[i]))
        return torch.tensor(self.factors[i], dtype=self.dtypes[i])

    def _note(self, i: int, norm: float) -> None:
        self.norms[i] = norm
        self.factors[i] = self.level / norm if norm > self.level else 1.0
