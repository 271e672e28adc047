"""Automatic precision: measure how much each tensor's rounding moves the gradient, and assign widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from activation_compression.agreement import over_processes, total_over_processes
from activation_compression.allocation import allocate
from activation_compression.formulas import Formula
from activation_compression.levels import Level
from activation_compression.sensitivity import (
    Adjoint,
    distance,
    frozen,
    gradient,
    leaves,
    like_groups,
    preserved,
    probed,
    shares,
)
from activation_compression.store import Store
from activation_compression.stored import Saved
from finetune_common.errors import ConfigurationError

__all__ = ["assigned", "probe"]

TRIALS = 2
"""Gradients by which an allocation is judged."""
APART = 2**30
"""Tensors between the random numbers of two trials."""


class Compressor(Protocol):
    """What is measured: an `ActivationCompressor`."""

    level: Level
    model: nn.Module
    store: Store
    log: list[dict[str, Any]]
    observer: Callable[[Tensor, Saved, Formula], None] | None

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...
    def with_level(self, level: str) -> Compressor:
        """Return a compressor of the same model with these settings and another level."""
        ...


def assigned(compressor: Compressor, loss_fn: Callable[[], Tensor], probes: int) -> dict[str, Any]:
    """Return sensitivities, elements, least widths, and the widths of the best of three allocations.

    Tensors that get twice the bits at a fixed level count twice in the average: the bytes are those of the
    fixed level.
    """
    sensitivities, elements, least, finer = _measure(compressor, loss_fn, probes)
    sensitivities, elements, least = over_processes(sensitivities, elements, least)
    widest = compressor.store.widest()
    alike = {key: min(8, 2 * widest) if key in finer else widest for key in elements}
    share = sum(elements[key] for key in finer) / sum(elements.values())
    average = min(32.0, compressor.level.bits * (1 + share))
    careful = allocate(sensitivities, elements, average, least)
    free = allocate(sensitivities, elements, average)
    candidates = [careful] + [w for w in (free, alike) if w != careful]
    widths = _best_of(compressor, loss_fn, candidates)
    found = {"sensitivities": sensitivities, "elements": elements, "least": least}
    return {**found, "average": average, "widths": widths}


def _measure(
    compressor: Compressor, loss_fn: Callable[[], Tensor], probes: int
) -> tuple[dict[str, float], dict[str, int], dict[str, int], set[str]]:
    """Return each tensor's sensitivity, elements and least width, and who gets twice the bits by default."""
    adjoint = Adjoint()
    measuring = compressor.with_level("L1.1")
    measuring.observer, measuring.store.alike = adjoint.saw, True
    generator = torch.Generator().manual_seed(compressor.store.draws.seed + len(compressor.log))
    with preserved(compressor.model), torch.enable_grad():
        with measuring:
            loss = loss_fn()
        if not adjoint.elements:
            raise ConfigurationError("loss_fn saved nothing that can be compressed: is it within a context?")
        try:
            gradients = gradient(loss, compressor.model, create_graph=True)
            with frozen(leaves(loss)):
                measured = adjoint.measure(gradients, generator, probes)
            return measured, adjoint.elements, adjoint.least, adjoint.finer
        except RuntimeError as error:
            if "is not implemented" not in str(error) and "once_differentiable" not in str(error):
                raise
    del loss
    found = probe(compressor, loss_fn, like_groups(adjoint.elements))
    return found, adjoint.elements, adjoint.least, adjoint.finer


def _best_of(
    compressor: Compressor, loss_fn: Callable[[], Tensor], candidates: Sequence[dict[str, int]]
) -> dict[str, int]:
    """Return the widths with which the gradient comes closest to the plain one; all processes agree."""

    def gradients(level: str, widths: dict[str, int], draw: int = 0) -> list[Tensor]:
        trial = compressor.with_level(level)
        trial.store.widths, trial.store.draws.drawn = widths, draw * APART
        return _gradient(trial, loss_fn)

    if len(candidates) == 1:
        return candidates[0]
    plain = gradients("L0", {})
    errors = [
        sum(distance(gradients("L1", widths, draw), plain) for draw in range(TRIALS)) for widths in candidates
    ]
    summed = total_over_processes(errors)
    return candidates[summed.index(min(summed))]


def probe(
    compressor: Compressor, loss_fn: Callable[[], Tensor], groups: list[dict[str, int]]
) -> dict[str, float]:
    """Measure groups of tensors by rounding each anew: one forward and backward pass for each group."""

    def gradients(group: frozenset[str]) -> list[Tensor]:
        trial = compressor.with_level("L1")
        trial.store.alike, trial.store.draws.reseeded = True, group
        return _gradient(trial, loss_fn)

    found = probed(gradients, [frozenset(group) for group in groups], bits=4)
    return {k: c for total, group in zip(found, groups, strict=True) for k, c in shares(total, group).items()}


def _gradient(compressor: Compressor, loss_fn: Callable[[], Tensor]) -> list[Tensor]:
    """Return the gradient of a loss whose forward pass is compressed, and leave no trace."""
    with preserved(compressor.model), torch.enable_grad():
        with compressor:
            loss = loss_fn()
        return gradient(loss, compressor.model)
