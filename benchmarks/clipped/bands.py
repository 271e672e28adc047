"""Scores of many seeds over the course of training: the median, and the band that holds 5 to 95 % of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
from matplotlib.figure import Figure

__all__ = ["band", "draw"]

Course = Mapping[int, Sequence[float]]
"""Step or epoch → a score a seed."""


def band(scores: Sequence[float]) -> tuple[float, float, float]:
    """Return what 5 %, half and 95 % of scores lie below, read off between them; of one score thrice itself.

    Examples:
        >>> band([0.0, 1.0, 2.0, 3.0, 4.0])
        (0.2, 2.0, 3.8)
    """
    low, middle, high = numpy.quantile(scores, (0.05, 0.5, 0.95)).round(12).tolist()
    return low, middle, high


def draw(panels: Mapping[str, Mapping[str, Course]], path: Path, unit: str = "step") -> None:
    """Write a figure with a panel a title, in which each setting has its median and its band.

    Args:
        panels: Title → setting → course.
        path: The figure's file.
        unit: What the courses go by.
    """
    figure = Figure(figsize=(7 * len(panels), 4.5), layout="constrained")
    for ax, (title, settings) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for setting, scores in settings.items():
            at = sorted(scores)
            low, middle, high = zip(*(band(scores[one]) for one in at), strict=True)
            ax.plot(at, middle, marker="." if len(at) < 20 else "", label=setting)
            ax.fill_between(at, low, high, alpha=0.15)
        ax.set(xlabel=unit, title=f"{title}: median and 5-95 % band")
        ax.legend(fontsize="small")
    figure.savefig(path, dpi=110)
