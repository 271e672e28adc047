"""One row of the table of cases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from finetune_common.aliases import Settings, StateDict

__all__ = ["Contract", "Factory", "OptimizerCase", "Reference"]

Factory: TypeAlias = Callable[..., Any]  # of a torch optimizer, whose annotations do not fit all closures
Reference: TypeAlias = Callable[[list[np.ndarray], list[np.ndarray], StateDict, int], list[np.ndarray]]


@dataclass(frozen=True)
class OptimizerCase:
    """One row of the table.

    Args:
        name: Shown in the test's name.
        settings: Keyword arguments of the optimizer.
        reference: The optimizer written again in float64 NumPy, from its equations:
            `reference(params, grads, state, t) -> new params` over all tensors at step t (from 1); `state`
            is an empty dictionary at first and is handed back at each step.
        convergent: Settings that differ for minimising the quadratic and the Rosenbrock function.
        costly: Whether the costly contracts apply; at most four cases a package.
        moves_zeros: Whether a parameter of zeros must move within three steps.
    """

    name: str
    settings: Settings
    reference: Reference
    convergent: Settings = field(default_factory=dict[str, Any])
    costly: bool = False
    moves_zeros: bool = True


Contract: TypeAlias = Callable[[Factory, OptimizerCase], None]
