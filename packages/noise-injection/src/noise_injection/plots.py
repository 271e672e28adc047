"""AGNI's two figures: effective step size over steps, and time per batch (extra `plots`)."""

# pyright: reportUnknownMemberType=false
# (matplotlib gives the keyword arguments of its methods no types)

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_common.aliases import JsonObject
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError
from finetune_common.plotting import axes_or_new

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_effective_step_size", "plot_time_per_batch"]


@explain_arguments
def plot_effective_step_size(runs: Mapping[str, str | Path], ax: Axes | None = None) -> Axes:
    """Plot ‖Δθ‖ of every step, one curve for each run, on a logarithmic axis.

    Args:
        runs: Label → folder of a run with `--monitor gradient-noise`.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes; `ax.figure.savefig("steps.pdf")` writes them.

    Raises:
        ConfigurationError: A run did not record it.
    """
    curves: dict[str, list[JsonObject]] = {}
    for label, folder in runs.items():
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        curves[label] = [entry for entry in map(json.loads, lines) if "effective_step_size" in entry]
        if not curves[label]:
            raise ConfigurationError(
                f"{folder}/metrics.jsonl has no effective_step_size: repeat the run with "
                "--monitor gradient-noise"
            )
    ax = axes_or_new(ax, 6, 3.5)
    for label, entries in curves.items():
        sizes = [entry["effective_step_size"] for entry in entries]
        ax.plot([entry["step"] for entry in entries], sizes, label=label, lw=1)
    ax.set(xlabel="step", ylabel="effective step size ‖Δθ‖", yscale="log")
    ax.legend()
    return ax


@explain_arguments
def plot_time_per_batch(results: Mapping[str, JsonObject], ax: Axes | None = None) -> Axes:
    """Plot the seconds that a micro-batch takes, one bar for each run, without evaluation and loading.

    Args:
        results: Label → content of the run's `result.json`.
        ax: Where to draw; None makes a figure.

    Returns:
        The axes; `ax.figure.savefig("time.pdf")` writes them.
    """
    ax = axes_or_new(ax, 6, 0.4 * len(results) + 1)
    seconds = [
        sum(t for part, t in result["seconds"].items() if part not in ("data", "evaluation"))
        / (result["steps"] * result["settings"]["accumulate"])
        for result in results.values()
    ]
    bars = ax.barh(list(results), seconds)
    ax.bar_label(bars, fmt="%.3g", padding=3)
    ax.set(xlabel="seconds per batch")
    ax.invert_yaxis()
    return ax
