"""Automatic precision: measure how far rounding each tensor moves the gradient; assign widths and groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn

from activation_compression.adjoint import Adjoint
from activation_compression.agreement import over_processes, total_over_processes
from activation_compression.formulas import Formula
from activation_compression.levels import Level
from activation_compression.measured import Assignment, Measured, Measurement
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
"""Gradients with which an allocation is compared."""
APART = 2**30
"""Distance between the random numbers of two trials, in tensors."""


class Compressor(Protocol):
    """The members of `ActivationCompressor` that a measurement uses."""

    level: Level
    model: nn.Module
    store: Store
    log: list[Measurement]
    observer: Callable[[Tensor, Saved, Formula], None] | None

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def with_level(self, level: str) -> Compressor:
        """Return a compressor of the same model with these settings and another level."""
        ...


def assigned(compressor: Compressor, loss_fn: Callable[[], Tensor], probes: int) -> Measurement:
    """Return the measurement, the error of each allocation tried, and widths and ways of the best one."""
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
    """Return each tensor's sensitivity, elements and least width, and which get twice the bits elsewhere."""
    store = compressor.store
    adjoint = Adjoint(store.group_size, store.widest(), store.draws.seed, choose=not store.published)
    measuring = compressor.with_level("L1.1")
    measuring.observer, measuring.store.equal_widths = adjoint.record, True
    generator = torch.Generator().manual_seed(store.draws.seed + len(compressor.log))

    def result(sensitivities: Mapping[str, float] | None = None) -> Measured:
        ways = adjoint.ways(sensitivities)
        return Measured(ways, adjoint.elements, adjoint.least, frozenset(adjoint.finer))

    with preserved(compressor.model), torch.enable_grad():
        with measuring:
            loss = loss_fn()
        if not adjoint.elements:
            raise ConfigurationError(
                "loss_fn saved nothing that can be compressed: it must run the model, not within a context"
            )
        try:
            gradients = gradient(loss, compressor.model, create_graph=True)
            with frozen(leaves(loss)):
                adjoint.measure(gradients, generator, probes)
            return result()
        except RuntimeError as error:
            if "is not implemented" not in str(error) and "once_differentiable" not in str(error):
                raise
    del loss
    return result(probe(compressor, loss_fn, like_groups(adjoint.elements)))


def _errors(
    compressor: Compressor, loss_fn: Callable[[], Tensor], candidates: Mapping[str, Assignment]
) -> dict[str, float]:
    """Return the gradient's squared error with each allocation, relative to its square; all processes agree.

    Equal allocations are tried once.
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
    """Measure groups of tensors by rounding each group again, in one forward and backward pass."""

    def gradients(group: frozenset[str]) -> list[Tensor]:
        trial = compressor.with_level("L1")
        trial.store.equal_widths, trial.store.draws.reseeded = True, group
        return _gradient(trial, loss_fn)

    totals = probed(gradients, [frozenset(group) for group in groups], bits=4)
    return {
        k: c for total, group in zip(totals, groups, strict=True) for k, c in shares(total, group).items()
    }


def _gradient(compressor: Compressor, loss_fn: Callable[[], Tensor]) -> list[Tensor]:
    """Return the gradient of a loss after a compressed forward pass; the model does not change."""
    with preserved(compressor.model), torch.enable_grad():
        with compressor:
            loss = loss_fn()
        return gradient(loss, compressor.model)
