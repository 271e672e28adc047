"""What a measurement of automatic precision says, and the allocations that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from activation_compression.allocation import Way, allocate_ways
from activation_compression.levels import Level

__all__ = ["Assignment", "Measured"]


@dataclass(frozen=True)
class Assignment:
    """What each tensor receives.

    Attributes:
        widths: Name → bits; 32 keeps a tensor.
        ways: Name → how its elements are grouped, where that is not left to the formula.
    """

    widths: dict[str, int]
    ways: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """What one measurement says, of all processes together.

    Attributes:
        ways: Name → way to group → its sensitivity and its groups, the usual way first.
        elements: Name → number of elements.
        least: Name → the width below which the first order says too little.
        finer: Who gets twice the bits at a fixed level.
    """

    ways: dict[str, dict[str, Way]]
    elements: dict[str, int]
    least: dict[str, int]
    finer: frozenset[str]

    @property
    def sensitivities(self) -> dict[str, float]:
        """Name → that of the usual way."""
        return {key: next(iter(ways.values())).sensitivity for key, ways in self.ways.items()}

    def average(self, level: Level) -> float:
        """Return the bits of an element on average: the bytes are those of a fixed level.

        Who gets twice the bits there counts twice.
        """
        share = sum(self.elements[key] for key in self.finer) / sum(self.elements.values())
        return min(32.0, level.bits * (1 + share))

    def candidates(self, average: float, widest: int) -> dict[str, Assignment]:
        """Return what is tried out.

        Args:
            average: Bits of an element.
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
