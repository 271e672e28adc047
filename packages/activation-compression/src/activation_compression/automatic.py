"""Automatic precision: measure how far rounding each tensor moves the gradient; assign widths and groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from activation_compression.adjoint import Adjoint
from activation_compression.agreement import over_processes, total_over_processes
from activation_compression.formulas import Formula
from activation_compression.levels import Level
from activation_compression.measured import Assignment, Measured
from activation_compression.sensitivity import (
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
    """Return what was measured, which allocations were tried, and the widths and ways of the best one."""
    measured = over_processes(_measure(compressor, loss_fn, probes))
    average = measured.average(compressor.level)
    candidates = measured.candidates(average, compressor.store.widest())
    errors = _errors(compressor, loss_fn, candidates)
    taken = min(errors, key=errors.__getitem__)
    return {
        "sensitivities": measured.sensitivities,
        "elements": measured.elements,
        "least": measured.least,
        "average": average,
        "tried": errors,
        "taken": taken,
        "widths": candidates[taken].widths,
        "ways": candidates[taken].ways,
    }


def _measure(compressor: Compressor, loss_fn: Callable[[], Tensor], probes: int) -> Measured:
    """Return each tensor's sensitivity, elements and least width, and which get twice the bits by default."""
    store = compressor.store
    adjoint = Adjoint(store.group_size, store.widest(), store.draws.seed, choose=not store.published)
    measuring = compressor.with_level("L1.1")
    measuring.observer, measuring.store.alike = adjoint.saw, True
    generator = torch.Generator().manual_seed(store.draws.seed + len(compressor.log))

    def found(measured: Mapping[str, float] | None = None) -> Measured:
        return Measured(adjoint.ways(measured), adjoint.elements, adjoint.least, frozenset(adjoint.finer))

    with preserved(compressor.model), torch.enable_grad():
        with measuring:
            loss = loss_fn()
        if not adjoint.elements:
            raise ConfigurationError("loss_fn saved nothing that can be compressed: is it within a context?")
        try:
            gradients = gradient(loss, compressor.model, create_graph=True)
            with frozen(leaves(loss)):
                adjoint.measure(gradients, generator, probes)
            return found()
        except RuntimeError as error:
            if "is not implemented" not in str(error) and "once_differentiable" not in str(error):
                raise
    del loss
    return found(probe(compressor, loss_fn, like_groups(adjoint.elements)))


def _errors(
    compressor: Compressor, loss_fn: Callable[[], Tensor], candidates: Mapping[str, Assignment]
) -> dict[str, float]:
    """Return how far the gradient is from the plain one with each allocation; all processes agree.

    Squared, relative to the squared norm of the plain one. Allocations that are equal are tried once.
    """

    def gradients(level: str, assignment: Assignment, draw: int = 0) -> list[Tensor]:
        trial = compressor.with_level(level)
        trial.store.widths, trial.store.ways = assignment.widths, assignment.ways
        trial.store.draws.drawn = draw * APART
        return _gradient(trial, loss_fn)

    different: dict[str, Assignment] = {}
    for name, assignment in candidates.items():
        if assignment not in different.values():
            different[name] = assignment
    plain = gradients("L0", Assignment({}))
    plain_square = sum(float(g.double().square().sum()) for g in plain) or 1.0
    errors = [
        sum(distance(gradients("L1", assignment, draw), plain) for draw in range(TRIALS))
        / TRIALS
        / plain_square
        for assignment in different.values()
    ]
    return dict(zip(different, total_over_processes(errors), strict=True))


def probe(
    compressor: Compressor, loss_fn: Callable[[], Tensor], groups: list[dict[str, int]]
) -> dict[str, float]:
    """Measure groups of tensors by rounding each anew: one forward and backward pass for each group."""

    def gradients(group: frozenset[str]) -> list[Tensor]:
        trial = compressor.with_level("L1")
        trial.store.alike, trial.store.draws.reseeded = True, group
        return _gradient(trial, loss_fn)

    totals = probed(gradients, [frozenset(group) for group in groups], bits=4)
    return {
        k: c for total, group in zip(totals, groups, strict=True) for k, c in shares(total, group).items()
    }


def _gradient(compressor: Compressor, loss_fn: Callable[[], Tensor]) -> list[Tensor]:
    """Return the gradient of a loss whose forward pass is compressed; the model is left as it was."""
    with preserved(compressor.model), torch.enable_grad():
        with compressor:
            loss = loss_fn()
        return gradient(loss, compressor.model)
