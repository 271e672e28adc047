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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_effective_step_size", "plot_time_per_batch"]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigurationError(
            "plots need matplotlib: from the checkout run pip install './packages/noise-injection[plots]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


@explain_arguments
def plot_effective_step_size(runs: Mapping[str, str | Path]) -> Figure:
    """Plot ‖Δθ‖ of every step, one curve for each run, on a logarithmic axis.

    Args:
        runs: Label → folder of a run with `--monitor gradient-noise`.

    Returns:
        A figure; `figure.savefig("steps.pdf")` writes it.

    Raises:
        ConfigurationError: A run did not record it.
    """
    figure, axes = _figure(6, 3.5)
    for label, folder in runs.items():
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
        logged = [entry for entry in map(json.loads, lines) if "effective_step_size" in entry]
        if not logged:
            raise ConfigurationError(
                f"{folder}/metrics.jsonl has no effective_step_size: repeat the run with "
                "--monitor gradient-noise"
            )
        steps, sizes = zip(*((e["step"], e["effective_step_size"]) for e in logged), strict=True)
        axes.plot(steps, sizes, label=label, lw=1)
    axes.set(xlabel="step", ylabel="effective step size ‖Δθ‖", yscale="log")
    axes.legend()
    return figure


@explain_arguments
def plot_time_per_batch(results: Mapping[str, JsonObject]) -> Figure:
    """Plot the seconds that a micro-batch takes, one bar for each run, without evaluation and loading.

    Args:
        results: Label → content of the run's `result.json`.

    Returns:
        A figure; `figure.savefig("time.pdf")` writes it.
    """
    figure, axes = _figure(6, 0.4 * len(results) + 1)
    seconds = [
        sum(t for part, t in result["seconds"].items() if part not in ("data", "evaluation"))
        / (result["steps"] * result["settings"]["accumulate"])
        for result in results.values()
    ]
    bars = axes.barh(list(results), seconds)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set(xlabel="seconds per batch")
    axes.invert_yaxis()
    return figure
