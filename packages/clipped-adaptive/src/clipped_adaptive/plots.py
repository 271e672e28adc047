"""Pictures of a sample's tail; needs the extra `[plots]`."""

# pyright: reportUnknownMemberType=false
# (matplotlib gives the keyword arguments of its methods no types)

from __future__ import annotations

from math import log, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipped_adaptive.heavy_tails import hill, hill_path, outlier_ratios
from finetune_common.arguments import explain_arguments
from finetune_common.plotting import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_hill", "plot_histogram", "plot_qq", "tail_figure"]


@explain_arguments
def plot_hill(x: object, ax: Axes | None = None) -> Axes:
    """Draw Hill's estimate against the number of values used, with its 95% band α(1 ± 1.96/√k).

    Args:
        x: A sample, as for `heavy_tails.hill`.
        ax: Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax)
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
    return ax


@explain_arguments
def plot_qq(x: object, ax: Axes | None = None) -> Axes:
    """Draw the sample's quantiles against those of a normal distribution with its mean and deviation.

    Args:
        x: A sample.
        ax: Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax)
    values = _sorted(x)
    levels = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
    quantiles = values.mean() + values.std() * torch.distributions.Normal(0.0, 1.0).icdf(levels)
    ax.plot(quantiles, values, ".", markersize=3)
    ends = [float(quantiles[0]), float(quantiles[-1])]
    ax.plot(ends, ends, linewidth=1, color="black")
    ax.set(xlabel="normal quantile", ylabel="sample quantile", title="QQ plot against a normal")
    return ax


@explain_arguments
def plot_histogram(x: object, ax: Axes | None = None) -> Axes:
    """Draw the sample's histogram with fitted densities: normal, log-normal, Pareto tail (top 5%).

    Args:
        x: A sample of positive values.
        ax: Where to draw; None makes a figure.
    """
    ax = axes_or_new(ax)
    values = _sorted(x)
    ax.hist(values, bins="fd", density=True, alpha=0.4, label="sample")
    points = torch.linspace(float(values[0]), float(values[-1]), 400, dtype=torch.float64)
    ax.plot(points, _normal_density(points, values), label="normal")
    positive = points[points > 0]
    log_normal = _normal_density(positive.log(), values[values > 0].log()) / positive
    ax.plot(positive, log_normal, label="log-normal")
    k = max(1, len(values) // 20)
    index, start = hill(values, k), values[-k - 1]
    tail = points[points >= start]
    density = k / len(values) * index * start**index * tail ** (-index - 1)
    ax.plot(tail, density, label=f"Pareto tail, α = {index:.1f}")
    mild, extreme = outlier_ratios(values)
    ax.set(xlabel="noise norm", ylabel="density", title=f"ρ mild {mild:.2f}, extreme {extreme:.0f}")
    ax.legend()
    return ax


@explain_arguments
def tail_figure(x: object) -> Figure:
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
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for draw, ax in zip((plot_histogram, plot_qq, plot_hill), axes, strict=True):
        draw(x, ax)
    return figure


def _sorted(x: object) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device="cpu").detach().flatten().sort().values


def _normal_density(points: Tensor, sample: Tensor) -> Tensor:
    """Return the density of a normal distribution with the sample's mean and variance."""
    mean, variance = sample.mean(), sample.var()
    return (-((points - mean) ** 2) / (2 * variance) - 0.5 * log(2 * pi)).exp() / variance.sqrt()
