"""The two figures of AGNI: effective step size over steps, and time per batch (extra `plots`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_effective_step_size", "plot_time_per_batch"]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
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
    """Plot ‖Δθ‖ of every step, one curve a run, on a logarithmic axis.

    Args:
        runs: Label → the folder of a run that had `--monitor gradient-noise`.

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
        axes.plot(
            *zip(*((e["step"], e["effective_step_size"]) for e in logged), strict=True), label=label, lw=1
        )
    axes.set(xlabel="step", ylabel="effective step size ‖Δθ‖", yscale="log")
    axes.legend()
    return figure


@explain_arguments
def plot_time_per_batch(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the seconds a micro-batch takes, one bar a run, without evaluation and loading.

    Args:
        results: Label → what the run's `result.json` holds.

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
