"""The settings of packing. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from activation_compression.levels import WIDTHS, Level

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The settings of a partition.

    Attributes:
        level: The level of rounding.
        group_size: Elements that share a minimum and a step.
        min_elements: Tensors with fewer elements are kept.
        derive: Whether to recompute more than torch would.
        widths: "module:operation:number" → bits, if given.
        exclude: Patterns of "module:operation" whose tensors are kept.
        seed: Seed of the rounding.
        state: Name of the state that the graphs belong to.
    """

    level: Level
    group_size: int
    min_elements: int
    derive: bool
    widths: Mapping[str, int]
    exclude: tuple[str, ...]
    seed: int
    state: str

    def width(self, name: str, finer: bool) -> int:
        """Return the bits of a tensor; 32 keeps it."""
        usual = max((width for width in WIDTHS if width <= self.level.bits), default=1)
        return self.widths.get(name, 2 * usual if finer else usual)

    def excludes(self, name: str) -> bool:
        """Return whether a pattern matches a tensor."""
        return any(fnmatchcase(name.rpartition(":")[0], pattern) for pattern in self.exclude)
