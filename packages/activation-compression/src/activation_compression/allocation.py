"""How many bits each tensor receives: the greedy rule, on plain numbers."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from activation_compression.levels import WIDTHS

__all__ = ["KEPT", "allocate", "noise"]

KEPT = 32
"""The width that stands for keeping a tensor unchanged."""
LADDER = (KEPT, *reversed(WIDTHS))


def noise(bits: int) -> float:
    """Return S(b) = 1 / (2ᵇ - 1)², to which the variance of rounding is proportional; 0 for kept tensors.

    Examples:
        >>> noise(1), round(1 / noise(4)), noise(32)
        (1.0, 225, 0.0)
    """
    return 0.0 if bits >= KEPT else 1 / (2**bits - 1) ** 2


def allocate(
    sensitivities: Mapping[str, float],
    elements: Mapping[str, int],
    average: float,
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Return widths that keep the gradient's variance small.

        minimise Σ c_l S(b_l)   subject to   Σ b_l n_l ≤ average · Σ n_l,   b_l ∈ {32, 8, 4, 2, 1}

    From 32 bits down, always the step that adds the least variance for each bit saved, until the average
    is reached. Below its least width a tensor goes only where the others are at theirs.

    Args:
        sensitivities: Tensor → c_l, at least 0.
        elements: Tensor → n_l.
        average: Bits an element, at least 1.
        least: Tensor → the width below which the variance is more than c_l S(b_l); by default 1.

    Returns:
        Tensor → b_l; 32 is a tensor that is kept unchanged.

    Source: Liu et al. 2022 (arXiv 2206.11357), section 5.

    Examples:
        >>> allocate({"a": 1.0, "b": 100.0}, {"a": 10, "b": 10}, average=3)
        {'a': 2, 'b': 4}
    """
    least = least or {}
    widths = dict.fromkeys(elements, KEPT)
    excess = sum(KEPT * n for n in elements.values()) - average * sum(elements.values())

    def step(key: str, rung: int) -> tuple[bool, float, str, int]:
        """Return whether it leads too low, the variance that it adds for each bit it saves, and its place."""
        before, after = LADDER[rung], LADDER[rung + 1]
        added = sensitivities[key] * (noise(after) - noise(before))
        return after < least.get(key, 1), added / ((before - after) * elements[key]), key, rung

    steps = [step(key, 0) for key in elements if elements[key]]
    heapq.heapify(steps)
    while excess > 0 and steps:
        *_, key, rung = heapq.heappop(steps)
        widths[key] = LADDER[rung + 1]
        excess -= (LADDER[rung] - LADDER[rung + 1]) * elements[key]
        if rung + 2 < len(LADDER):
            heapq.heappush(steps, step(key, rung + 1))
    return widths
