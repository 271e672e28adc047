"""The greedy rule for each tensor's bits and groups, on plain numbers."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from activation_compression.levels import WIDTHS

__all__ = ["ENDS", "KEPT", "Way", "allocate", "allocate_ways", "noise"]

KEPT = 32
"""The width of a tensor that is kept unchanged."""
ENDS = 32
"""Bits of a group's minimum and step."""


class Way(NamedTuple):
    """A way to group the elements of a tensor.

    Attributes:
        sensitivity: c_l with these groups, at least 0.
        groups: The number of groups.
    """

    sensitivity: float
    groups: int = 0


class Rung(NamedTuple):
    """A width and a way to group, their costs in bits, and the variance of the gradient with them."""

    bits: int
    way: str
    codes: float
    cost: float
    variance: float


def noise(bits: int) -> float:
    """Return S(b) = 1 / (2ᵇ - 1)²: the variance of rounding is proportional to it; 0 for kept tensors.

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
    """Return widths that keep the gradient's variance small, with one way to group each tensor.

        minimise Σ c_l S(b_l)   subject to   Σ b_l n_l ≤ average · Σ n_l,   b_l ∈ {32, 8, 4, 2, 1}

    Args:
        sensitivities: Tensor → c_l, at least 0.
        elements: Tensor → n_l.
        average: Average bits per element, at least 1.
        least: Tensor → the width below which the variance is more than c_l S(b_l); by default 1.

    Returns:
        Tensor → b_l; 32 means that a tensor is kept unchanged.

    Source: Liu et al. 2022 (arXiv 2206.11357), section 5.

    Examples:
        >>> allocate({"a": 1.0, "b": 100.0}, {"a": 10, "b": 10}, average=3)
        {'a': 2, 'b': 4}
    """
    ways = {key: {"": Way(c)} for key, c in sensitivities.items()}
    return allocate_ways(ways, elements, average, least)[0]


def allocate_ways(
    ways: Mapping[str, Mapping[str, Way]],
    elements: Mapping[str, int],
    average: float,
    least: Mapping[str, int] | None = None,
) -> tuple[dict[str, int], dict[str, str]]:
    """Return widths and ways to group that keep the gradient's variance small.

        minimise Σ c_l(w_l) S(b_l)   subject to   Σ b_l n_l ≤ average · Σ n_l
        and   Σ b_l n_l + 32 g_l(w_l) ≤ Σ average · n_l + 32 g_l(usual way)

    g_l(w) is the number of groups. All tensors start at 32 bits; the step that adds the least variance per
    saved bit is taken until both constraints hold. Steps below a tensor's least width are taken last.

    Args:
        ways: Tensor → name → way, the usual one first.
        elements: Tensor → n_l.
        average: Average bits per element, at least 1.
        least: Tensor → the width below which the variance is more than c_l S(b_l); by default 1.

    Returns:
        Tensor → b_l, and tensor → w_l.

    Examples:
        >>> outliers = {"columns": Way(1.0, 1), "rotated": Way(0.1, 2)}
        >>> allocate_ways({"a": outliers, "b": {"columns": Way(0.5, 1)}}, {"a": 100, "b": 100}, average=3)
        ({'a': 2, 'b': 2}, {'a': 'rotated', 'b': 'columns'})
    """
    least = least or {}
    budget = average * sum(elements.values())
    ends = ENDS * sum(next(iter(ways_of_tensor.values())).groups for ways_of_tensor in ways.values())
    ladders = {key: _ladder(ways[key], n, least.get(key, 1)) for key, n in elements.items() if n}
    taken = {key: ladder[0] for key, ladder in ladders.items()}
    codes = sum(rung.codes for rung in taken.values())
    cost = sum(rung.cost for rung in taken.values())

    def step(key: str, number: int) -> tuple[bool, float, str, int]:
        """Return whether a step goes below the least width, its variance per saved bit, and its position."""
        before, after = ladders[key][number : number + 2]
        slope = (after.variance - before.variance) / (before.cost - after.cost)
        return after.bits < least.get(key, 1), slope, key, number

    steps = [step(key, 0) for key in ladders]
    heapq.heapify(steps)
    while (codes > budget or cost > budget + ends) and steps:
        *_, key, number = heapq.heappop(steps)
        before, after = ladders[key][number : number + 2]
        taken[key] = after
        codes, cost = codes + after.codes - before.codes, cost + after.cost - before.cost
        if number + 2 < len(ladders[key]):
            heapq.heappush(steps, step(key, number + 1))
    widths = {key: taken[key].bits if key in taken else KEPT for key in elements}
    return widths, {key: rung.way for key, rung in taken.items()}


def _ladder(ways: Mapping[str, Way], n: int, least: int) -> list[Rung]:
    """Return the choices on the convex curve of least variance for each cost, the most expensive first."""
    usual = next(iter(ways))
    ladder = [Rung(KEPT, usual, KEPT * n, KEPT * n, 0.0)]
    rungs = [
        Rung(bits, name, bits * n, bits * n + ENDS * way.groups, way.sensitivity * noise(bits))
        for name, way in ways.items()
        for bits in WIDTHS
    ]
    for part in ([r for r in rungs if r.bits >= least], [r for r in rungs if r.bits < least]):
        ladder = _hull([*ladder, *sorted(part, key=lambda r: (-r.cost, -r.variance))], len(ladder))
    return ladder


def _hull(rungs: Sequence[Rung], fixed: int) -> list[Rung]:
    """Return the lower convex hull of variance over cost; the first `fixed` rungs always belong to it."""
    chosen: list[Rung] = list(rungs[:fixed])
    for rung in rungs[fixed:]:
        while len(chosen) > fixed and (
            chosen[-1].cost <= rung.cost or _slope(chosen[-2], chosen[-1]) > _slope(chosen[-2], rung)
        ):
            chosen.pop()
        if chosen[-1].cost > rung.cost:
            chosen.append(rung)
    return chosen


def _slope(dear: Rung, cheap: Rung) -> float:
    return (cheap.variance - dear.variance) / (dear.cost - cheap.cost)
