"""Figures of sensitivity; needs the extra `[plots]`."""

# pyright: reportUnknownMemberType=false
# (matplotlib gives the keyword arguments of its methods no types)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_common.arguments import explain_arguments
from finetune_common.plotting import axes_or_new
from sensitivity_lr.analysis import SensitivityTracker

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_distribution", "plot_sparsity_curves"]


@explain_arguments
def plot_distribution(records: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw the distribution of |θ g| over training: an outline for each record, later ones darker.

    Args:
        records: `SensitivityTracker.records`, at least one.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes: log10 |θ g| horizontally, the share of parameters (logarithmic) vertically.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> bins = len(SensitivityTracker.edges()) - 1
        >>> plot_distribution([{"step": 1, "counts": [1] * bins, "zeros": 0.0}]).get_yscale()
        'log'
    """
    ax = axes_or_new(ax)
    from matplotlib import colormaps

    edges = SensitivityTracker.edges()
    for number, record in enumerate(records):
        total = sum(record["counts"]) or 1
        shade = 0.25 + 0.7 * (number + 1) / len(records)
        ax.stairs(
            [count / total for count in record["counts"]],
            edges,
            color=colormaps["Blues"](shade),
            label=f"step {record['step']}" if number in (0, len(records) - 1) else None,
        )
    occupied = [i for record in records for i, count in enumerate(record["counts"]) if count]
    if occupied:
        ax.set_xlim(edges[min(occupied)], edges[max(occupied) + 1])
    ax.set(
        xlabel="log10 of the sensitivity |θ g|", ylabel="share of the parameters with |θ g| > 0", yscale="log"
    )
    ax.legend()
    ax.grid(alpha=0.3)
    return ax


@explain_arguments
def plot_sparsity_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], score: str = "score", ax: Axes | None = None
) -> Axes:
    """Draw the score against the share of parameters pruned.

    Args:
        curves: Name → (sparsity, score) pairs, as from `sparsity_curve`.
        score: Name of the score, for the axis.
        ax: Where to draw; None makes a figure.

    Returns:
        The ax.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> plot_sparsity_curves({"adamw": [(0.0, 0.9), (0.5, 0.7)]}, "accuracy").get_ylabel()
        'accuracy'
    """
    ax = axes_or_new(ax)
    for name, curve in curves.items():
        ax.plot(*zip(*curve, strict=True), marker="o", label=name)
    ax.set(xlabel="share of parameters pruned, least sensitive first", ylabel=score)
    ax.legend()
    ax.grid(alpha=0.3)
    return ax
