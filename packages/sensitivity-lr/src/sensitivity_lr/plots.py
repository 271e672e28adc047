"""Figures of sensitivity; needs the extra `[plots]`."""

# pyright: reportUnknownMemberType=false
# (matplotlib gives the keyword arguments of its methods no types)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from finetune_common.arguments import explain_arguments
from sensitivity_lr.analysis import SensitivityTracker

__all__ = ["plot_distribution", "plot_sparsity_curves"]


@explain_arguments
def plot_distribution(records: Sequence[Mapping[str, Any]], axes: Axes | None = None) -> Axes:
    """Draw the distribution of |θ g| over training: an outline for each record, later ones darker.

    Args:
        records: `SensitivityTracker.records`, at least one.
        axes: Where to draw; None makes a figure.

    Returns:
        The axes: log10 |θ g| horizontally, the share of parameters (logarithmic) vertically.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> bins = len(SensitivityTracker.edges()) - 1
        >>> plot_distribution([{"step": 1, "counts": [1] * bins, "zeros": 0.0}]).get_yscale()
        'log'
    """
    if axes is None:
        _, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    edges = SensitivityTracker.edges()
    for number, record in enumerate(records):
        total = sum(record["counts"]) or 1
        shade = 0.25 + 0.7 * (number + 1) / len(records)
        axes.stairs(
            [count / total for count in record["counts"]],
            edges,
            color=plt.get_cmap("Blues")(shade),
            label=f"step {record['step']}" if number in (0, len(records) - 1) else None,
        )
    occupied = [i for record in records for i, count in enumerate(record["counts"]) if count]
    if occupied:
        axes.set_xlim(edges[min(occupied)], edges[max(occupied) + 1])
    axes.set(
        xlabel="log10 of the sensitivity |θ g|", ylabel="share of the parameters with |θ g| > 0", yscale="log"
    )
    axes.legend()
    axes.grid(alpha=0.3)
    return axes


@explain_arguments
def plot_sparsity_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], score: str = "score", axes: Axes | None = None
) -> Axes:
    """Draw the score against the share of parameters pruned.

    Args:
        curves: Name → (sparsity, score) pairs, as from `sparsity_curve`.
        score: Name of the score, for the axis.
        axes: Where to draw; None makes a figure.

    Returns:
        The axes.

    Examples:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> plot_sparsity_curves({"adamw": [(0.0, 0.9), (0.5, 0.7)]}, "accuracy").get_ylabel()
        'accuracy'
    """
    if axes is None:
        _, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=name)
    axes.set(xlabel="share of parameters pruned, least sensitive first", ylabel=score)
    axes.legend()
    axes.grid(alpha=0.3)
    return axes
