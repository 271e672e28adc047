"""One row of the table of cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Contract", "Factory", "OptimizerCase", "Reference"]

Factory = Callable[..., Any]  # a torch optimizer; torch annotates closures differently from how it calls them
Reference = Callable[[list[np.ndarray], list[np.ndarray], dict[str, Any], int], list[np.ndarray]]


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
    settings: Mapping[str, Any]
    reference: Reference
    convergent: Mapping[str, Any] = field(default_factory=dict)
    costly: bool = False
    moves_zeros: bool = True


Contract = Callable[[Factory, OptimizerCase], None]
