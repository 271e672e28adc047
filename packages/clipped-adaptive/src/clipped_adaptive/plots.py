"""Pictures of a sample's tail; needs the extra `[plots]`."""

from __future__ import annotations

from math import log, pi
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from clipped_adaptive.heavy_tails import hill, hill_path, outlier_ratios

__all__ = ["hill_plot", "histogram", "qq_plot", "tail_figure"]


def hill_plot(x: Any, ax: Axes) -> None:
    """Draw Hill's estimate against the number of values used, with its 95% band α(1 ± 1.96/√k).

    Args:
        x: A sample, as for `heavy_tails.hill`.
        ax: Where to draw.
    """
    path = hill_path(x)
    path = path[: max(2, len(path) // 2)]
    k = torch.arange(1, len(path) + 1)
    ax.plot(k, path, label="Hill's estimate")
    error = 1.96 * path / k.sqrt()
    ax.fill_between(k, path - error, path + error, alpha=0.2, label="95% band")
    ax.set(
        xlabel="k largest values", ylabel="tail index α", title="Hill plot", ylim=(0, 2.5 * float(path[-1]))
    )
    ax.legend()


def qq_plot(x: Any, ax: Axes) -> None:
    """Draw the sample's quantiles against those of a normal distribution with its mean and deviation.

    Args:
        x: A sample.
        ax: Where to draw.
    """
    values = _sorted(x)
    levels = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
    normal = values.mean() + values.std() * torch.special.ndtri(levels)
    ax.plot(normal, values, ".", markersize=3)
    ends = [float(normal[0]), float(normal[-1])]
    ax.plot(ends, ends, linewidth=1, color="black")
    ax.set(xlabel="normal quantile", ylabel="sample quantile", title="QQ plot against a normal")


def histogram(x: Any, ax: Axes) -> None:
    """Draw the sample's histogram with fitted densities: normal, log-normal, Pareto tail (top 5%).

    Args:
        x: A sample of positive values.
        ax: Where to draw.
    """
    values = _sorted(x)
    ax.hist(values, bins="fd", density=True, alpha=0.4, label="sample")
    at = torch.linspace(float(values[0]), float(values[-1]), 400, dtype=torch.float64)
    ax.plot(at, _normal(at, values), label="normal")
    positive = at[at > 0]
    ax.plot(positive, _normal(positive.log(), values[values > 0].log()) / positive, label="log-normal")
    k = max(1, len(values) // 20)
    index, start = hill(values, k), values[-k - 1]
    tail = at[at >= start]
    density = k / len(values) * index * start**index * tail ** (-index - 1)
    ax.plot(tail, density, label=f"Pareto tail, α = {index:.1f}")
    mild, extreme = outlier_ratios(values)
    ax.set(xlabel="noise norm", ylabel="density", title=f"ρ mild {mild:.2f}, extreme {extreme:.0f}")
    ax.legend()


def tail_figure(x: Any) -> Figure:
    """Return a figure with the histogram, the QQ plot and the Hill plot of a sample side by side.

    Args:
        x: A sample of positive values, at least 4.

    Examples:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> figure = tail_figure(torch.linspace(1, 3, 200).exp())
        >>> [ax.get_title() for ax in figure.axes]
        ['ρ mild 0.00, extreme 0', 'QQ plot against a normal', 'Hill plot']
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for draw, ax in zip((histogram, qq_plot, hill_plot), axes, strict=True):
        draw(x, ax)
    return figure


def _sorted(x: Any) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device="cpu").detach().flatten().sort().values


def _normal(at: Tensor, fitted_to: Tensor) -> Tensor:
    mean, variance = fitted_to.mean(), fitted_to.var()
    return (-((at - mean) ** 2) / (2 * variance) - 0.5 * log(2 * pi)).exp() / variance.sqrt()
