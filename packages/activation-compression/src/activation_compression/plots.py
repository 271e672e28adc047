"""Figures of automatic precision; needs the extra `[plots]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from activation_compression.measured import Measurement
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_widths"]


@explain_arguments
def plot_widths(log: Sequence[Measurement]) -> Figure:
    """Draw each tensor's width in every measurement, and its newest sensitivity.

    Args:
        log: `ActivationCompressor.log`.

    Raises:
        ConfigurationError: The log is empty.

    Examples:
        >>> entry = {"sensitivities": {"a:gelu:0": 1e-3}, "widths": {"a:gelu:0": 4}}
        >>> len(plot_widths([entry]).axes)
        2
    """
    from matplotlib.figure import Figure

    if not log:
        raise ConfigurationError("the log is empty: call adapt, or train with --activation.level L2")
    newest = log[-1]["sensitivities"]
    names = list(newest)
    figure = Figure(figsize=(8, 1.5 + 0.16 * len(names)), layout="constrained")
    widths, sensitivities = figure.subplots(1, 2, sharey=True)
    for number, entry in enumerate(log, start=1):
        shown = [entry["widths"].get(name, float("nan")) for name in names]
        widths.plot(shown, range(len(names)), ".", label=f"measurement {number}")
    widths.set_xscale("log", base=2)
    widths.set_xlabel("bits")
    widths.set_yticks(range(len(names)), [name.rpartition(":")[0] for name in names], fontsize=6)
    widths.invert_yaxis()
    sensitivities.barh(range(len(names)), [newest[name] for name in names])
    sensitivities.set_xscale("log")
    sensitivities.set_xlabel("sensitivity of the gradient")
    if len(log) > 1:
        widths.legend()
    return figure
