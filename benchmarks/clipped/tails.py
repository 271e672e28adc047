"""What a sample of gradient-noise norms looks like: numbers, a table row, a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from clipped_adaptive.heavy_tails import hill, outlier_ratios

__all__ = ["described", "draw", "figure_of", "table"]

LARGEST = 0.05
"""Share of the sample that Hill's estimate uses."""


def described(norms: Tensor) -> dict[str, Any]:
    """Return the indices of a sample, and the sample."""
    mild, extreme = outlier_ratios(norms)
    return {
        "n": len(norms),
        "mean": norms.mean().item(),
        "sd": norms.std().item(),
        "largest": norms.max().item(),
        "rho_mild": mild,
        "rho_extreme": extreme,
        "hill": hill(norms, k=max(2, round(LARGEST * len(norms)))),
        "norms": [float(f"{value:.5g}") for value in norms.tolist()],
    }


def table(samples: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a markdown table, a row a sample."""
    lines = [
        "| sample | n | mean | sd | largest / mean | ρ mild | ρ extreme | Hill α |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in samples.items():
        lines.append(
            f"| {name} | {one['n']} | {one['mean']:.3g} | {one['sd']:.2g} | "
            f"{one['largest'] / one['mean']:.2f} | {one['rho_mild']:.2f} | {one['rho_extreme']:.0f} | "
            f"{one['hill']:.1f} |"
        )
    note = f"Hill's estimate uses the largest {LARGEST:.0%}; ρ is (1, 1) for a normal sample."
    return "\n".join(lines) + f"\n\n{note}\n"


def figure_of(samples: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return each sample's histogram, QQ plot and Hill plot in a row of its own."""
    from clipped_adaptive.plots import plot_hill, plot_histogram, plot_qq

    figure = Figure(figsize=(14, 3.2 * len(samples)), layout="constrained")
    rows = figure.subplots(len(samples), 3, squeeze=False)
    for row, (name, one) in zip(rows, samples.items(), strict=True):
        for ax, plot in zip(row, (plot_histogram, plot_qq, plot_hill), strict=True):
            plot(one["norms"], ax)
        row[0].set_ylabel(f"{name}\n{row[0].get_ylabel()}")
    return figure


def draw(samples: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write that figure."""
    figure_of(samples).savefig(path, dpi=90)
