"""Where plots are drawn; needs matplotlib."""

# pyright: reportUnknownMemberType=false
# (matplotlib gives the keyword arguments of its functions no types)

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_common.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["axes_or_new"]


def axes_or_new(ax: Axes | None, width: float = 6, height: float = 4) -> Axes:
    """Return the given axes, or the axes of a new figure of pyplot.

    Args:
        ax: Where to draw; None makes a figure.
        width: Of a new figure, in inches.
        height: Of a new figure, in inches.

    Raises:
        ConfigurationError: matplotlib is not installed.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> ax = axes_or_new(None, width=3)
        >>> axes_or_new(ax) is ax
        True
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        raise ConfigurationError("plots need matplotlib: pip install 'matplotlib>=3.9'") from None
    return plt.subplots(figsize=(width, height), layout="constrained")[1]
