"""One chart a task: the score over training, a line a setting, and where it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from glue_harness.report.aggregate import Row

__all__ = ["plot_tasks"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

LINES = ("-", "--", ":", "-.")


def _curve(runs: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[float], np.ndarray]:
    epochs = [entry["epoch"] for entry in runs[0]["history"]]
    scores = [[entry["metrics"][metric] for entry in run["history"][: len(epochs)]] for run in runs]
    return epochs, np.array([s for s in scores if len(s) == len(epochs)])


def plot_tasks(results: Sequence[Mapping[str, Any]], rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a chart for every task.

    Args:
        results: The runs.
        rows: Their summary, which gives the settings' names and order.
        folder: Receives `<task>.png`.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_folder = {result["folder"]: result for result in results}
    files = []
    for task in dict.fromkeys(row.task for row in rows):
        figure, (curves, ends) = plt.subplots(
            1, 2, figsize=(11, 4.2), layout="constrained", width_ratios=(3, 2)
        )
        of_task = [row for row in rows if row.task == task]
        several_models = len({row.model for row in of_task}) > 1
        names = [f"{Path(r.model).name}, {r.setting}" if several_models else r.setting for r in of_task]
        for number, (row, name) in enumerate(zip(of_task, names, strict=True)):
            colour, line = COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]
            epochs, scores = _curve([by_folder[run] for run in row.runs], row.primary)
            marker = "o" if len(epochs) < 20 else None
            curves.plot(epochs, scores.mean(axis=0), color=colour, linestyle=line, marker=marker, label=name)
            if len(scores) > 1:
                low, high = scores.min(axis=0), scores.max(axis=0)
                curves.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
            mean, spread = row.metrics[row.primary]
            ends.errorbar(mean, -number, xerr=spread, fmt="o", color=colour, capsize=4)
        metric = of_task[0].primary.replace("_", " ")
        curves.set(xlabel="epoch", ylabel=metric, title=f"{task}: {metric} on the dev set")
        curves.grid(alpha=0.3)
        curves.legend(fontsize="small")
        ends.set(xlabel=metric, yticks=[-i for i in range(len(names))], title="at the end (± sd over seeds)")
        ends.set_yticklabels(names, fontsize="small")
        ends.margins(y=0.5 / len(names) + 0.1)
        ends.grid(alpha=0.3)
        files.append(folder / f"{task}.png")
        figure.savefig(files[-1], dpi=130)
        plt.close(figure)
    return files
