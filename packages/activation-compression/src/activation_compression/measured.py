"""The results of measuring for automatic precision, and the allocations to try."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypedDict

from activation_compression.allocation import Way, allocate_ways
from activation_compression.levels import Level

__all__ = ["Assignment", "Measured", "Measurement"]


class Measurement(TypedDict):
    """An entry of `ActivationCompressor.log`.

    Attributes:
        sensitivities: Name → c_l of the usual way to group it.
        elements: Name → number of elements.
        least: Name → the width below which the estimate is too small.
        average: Bits per element.
        tried: Allocation → squared error of the gradient, relative to its square.
        taken: The allocation with the smallest error.
        widths: Name → bits of this allocation.
        ways: Name → how the elements are grouped.
    """

    sensitivities: dict[str, float]
    elements: dict[str, int]
    least: dict[str, int]
    average: float
    tried: dict[str, float]
    taken: str
    widths: dict[str, int]
    ways: dict[str, str]


@dataclass(frozen=True)
class Assignment:
    """The widths and groups of all tensors.

    Attributes:
        widths: Name → bits; 32 keeps a tensor.
        ways: Name → how its elements are grouped; without it the formula decides.
    """

    widths: dict[str, int]
    ways: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Measured:
    """The sensitivities of one measurement, of all processes together.

    Attributes:
        ways: Name → way to group → its sensitivity and number of groups, the usual way first.
        elements: Name → number of elements.
        least: Name → the width below which the first-order estimate is too small.
        finer: Names of tensors that get twice the bits at a fixed level.
    """

    ways: dict[str, dict[str, Way]]
    elements: dict[str, int]
    least: dict[str, int]
    finer: frozenset[str]

    @property
    def sensitivities(self) -> dict[str, float]:
        """Name → the sensitivity of the usual way."""
        return {key: next(iter(ways.values())).sensitivity for key, ways in self.ways.items()}

    def average(self, level: Level) -> float:
        """Return the average bits per element with which the bytes equal those of a fixed level.

        Tensors that get twice the bits there count twice.
        """
        share = sum(self.elements[key] for key in self.finer) / sum(self.elements.values())
        return min(32.0, level.bits * (1 + share))

    def candidates(self, average: float, widest: int) -> dict[str, Assignment]:
        """Return the allocations to try, by name.

        Args:
            average: Average bits per element.
            widest: Bits of most tensors at the fixed level.
        """
        usual = {key: dict([next(iter(ways.items()))]) for key, ways in self.ways.items()}
        equal = {key: min(8, 2 * widest) if key in self.finer else widest for key in self.elements}
        return {
            "optimum, no single bit where not linear": Assignment(
                *allocate_ways(self.ways, self.elements, average, self.least)
            ),
            "optimum of the first order": Assignment(*allocate_ways(self.ways, self.elements, average)),
            "optimum, groups as the formulas say": Assignment(
                *allocate_ways(usual, self.elements, average, self.least)
            ),
            "equal widths": Assignment(equal),
        }
