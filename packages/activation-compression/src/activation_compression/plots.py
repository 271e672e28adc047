"""Figures of automatic precision; needs the extra `[plots]`."""

# pyright: reportUnknownMemberType=false
# (matplotlib gives the keyword arguments of its methods no types)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from activation_compression.measured import Measurement
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError
from finetune_common.plotting import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_sensitivities", "plot_widths"]


@explain_arguments
def plot_widths(log: Sequence[Measurement], ax: Axes | None = None) -> Axes:
    """Draw each tensor's width in every measurement, the first tensor at the top.

    Args:
        log: `ActivationCompressor.log`.
        ax: Where to draw; None makes a figure.

    Raises:
        ConfigurationError: The log is empty.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> entry = {"sensitivities": {"a:gelu:0": 1e-3}, "widths": {"a:gelu:0": 4}}
        >>> plot_widths([entry]).get_xlabel()
        'bits'
    """
    names = _tensors(log)
    ax = _axes_for(names, ax)
    for number, entry in enumerate(log, start=1):
        widths = [entry["widths"].get(name, float("nan")) for name in names]
        ax.plot(widths, range(len(names)), ".", label=f"measurement {number}")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("bits")
    if len(log) > 1:
        ax.legend()
    return ax


@explain_arguments
def plot_sensitivities(log: Sequence[Measurement], ax: Axes | None = None) -> Axes:
    """Draw each tensor's newest sensitivity, the first tensor at the top.

    Args:
        log: `ActivationCompressor.log`.
        ax: Where to draw; None makes a figure. Beside `plot_widths`: two axes that share y.

    Raises:
        ConfigurationError: The log is empty.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> entry = {"sensitivities": {"a:gelu:0": 1e-3}, "widths": {"a:gelu:0": 4}}
        >>> plot_sensitivities([entry]).get_xlabel()
        'sensitivity of the gradient'
    """
    names = _tensors(log)
    ax = _axes_for(names, ax)
    ax.barh(range(len(names)), [log[-1]["sensitivities"][name] for name in names])
    ax.set_xscale("log")
    ax.set_xlabel("sensitivity of the gradient")
    return ax


def _tensors(log: Sequence[Measurement]) -> list[str]:
    """Return the names of the tensors of the newest measurement."""
    if not log:
        raise ConfigurationError("the log is empty: call adapt, or train with --activation.level L2")
    return list(log[-1]["sensitivities"])


def _axes_for(names: Sequence[str], ax: Axes | None) -> Axes:
    """Return axes with a row for each tensor, the first at the top."""
    ax = axes_or_new(ax, 6, 1.5 + 0.16 * len(names))
    ax.set_yticks(range(len(names)), [name.rpartition(":")[0] for name in names], fontsize=6)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return ax
