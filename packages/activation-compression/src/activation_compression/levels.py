"""The levels of compression by name. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_common.errors import ConfigurationError, check_choice, check_number

__all__ = ["LEVELS", "WIDTHS", "Level", "find_level"]

WIDTHS = (1, 2, 4, 8)
"""Widths of the quantiser, in bits; a tensor with a larger width is kept unchanged."""


@dataclass(frozen=True)
class Level:
    """The settings behind a level's name.

    Attributes:
        bits: Bits per element, the average if `automatic`; 32 keeps tensors unchanged.
        automatic: Whether each tensor's width follows from its effect on the gradient.
        offload: Whether stored tensors wait in host memory.
        lossless: Whether tensors change their form, but none is rounded.
    """

    bits: float
    automatic: bool = False
    offload: bool = False
    lossless: bool = False

    @property
    def packs(self) -> bool:
        """Whether tensors are stored in another form at all."""
        return self.automatic or self.lossless or self.bits <= 8

    @property
    def rounds(self) -> bool:
        """Whether some tensors are rounded."""
        return self.packs and not self.lossless


LEVELS = {
    "L0": Level(32),
    "lossless": Level(32, lossless=True),
    "L1": Level(4),
    "L1.1": Level(8),
    "L1.2": Level(2),
    "L2": Level(4, automatic=True),
    "L2.1": Level(3, automatic=True),
    "L2.2": Level(2, automatic=True),
    "L3": Level(4, automatic=True, offload=True),
    "swap": Level(32, offload=True),
    "L4bit-swap": Level(4, offload=True),
}
"""Name → level."""


def find_level(name: str, bits: float | None = None) -> Level:
    """Return a level; if `bits` is given, automatic precision with this average.

    Args:
        name: One of `LEVELS`.
        bits: Average bits per element instead of the level's, in [1, 32].

    Raises:
        ConfigurationError: The name or the average is not allowed.

    Examples:
        >>> find_level("L2.2").bits, find_level("L1", bits=3.5).automatic
        (2, True)
    """
    check_choice("level", name, LEVELS)
    if bits is None:
        return LEVELS[name]
    check_number("bits", bits, at_least=1, at_most=32)
    if LEVELS[name].lossless:
        raise ConfigurationError(
            f"level {name!r} rounds nothing: remove bits={bits}, or choose another level"
        )
    return Level(bits, automatic=True, offload=LEVELS[name].offload)
