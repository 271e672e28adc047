"""The chart of a search: each trial's scores, the origin of its weights, and the path to the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from finetune_common.aliases import JsonObject
from glue_harness.files import atomic
from glue_harness.report.panels import COLOURS
from glue_harness.report.plots import STYLE

__all__ = ["draw_lineage"]

OTHERS, BEST = "#8a8a8a", COLOURS[1]
PANELS = 4
"""Of options, below that of the scores."""


def _numeric(report: JsonObject) -> list[str]:
    """Return the options that a chart can show: numbers that differ between evaluations."""
    values: dict[str, set[float | None]] = {}
    for evaluation in report["evaluations"]:
        for option, value in evaluation["configuration"].items():
            values.setdefault(option, set()).add(value if isinstance(value, int | float) else None)
    return [option for option, seen in values.items() if len(seen) > 1 and None not in seen]


def _draw(axes: Axes, report: JsonObject, height: Mapping[str, float], label: str) -> None:
    """Draw a quantity over epochs; each evaluation is joined to the one that gave its weights."""
    evaluations = {evaluation["id"]: evaluation for evaluation in report["evaluations"]}
    path = set(report["best"]["lineage"])
    for name, evaluation in evaluations.items():
        chosen = name in path
        style = {"color": BEST if chosen else OTHERS, "zorder": 3 if chosen else 2}
        axes.plot(evaluation["epoch"], height[name], "o", markersize=5 if chosen else 3, **style)
        parent = evaluations.get(evaluation["parent"])
        if parent is not None:
            from_other = parent["trial"] != evaluation["trial"]
            axes.plot(
                (parent["epoch"], evaluation["epoch"]),
                (height[parent["id"]], height[name]),
                linestyle=":" if from_other else "-",
                linewidth=2.2 if chosen else 1,
                **style,
            )
    axes.set_ylabel(label)


def draw_lineage(report: JsonObject, folder: Path) -> Sequence[Path]:
    """Draw `lineage.png` and `lineage.svg`.

    Args:
        report: What `search.json` holds.
        folder: Receives the files.
    """
    metric, evaluations = report["metric"], report["evaluations"]
    options = _numeric(report)[:PANELS]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1 + len(options),
            figsize=(7, 3.4 + 1.7 * len(options)),
            height_ratios=[2.4, *[1.0] * len(options)],
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        axes = panels[:, 0]
        scores = {evaluation["id"]: evaluation["metrics"][metric] for evaluation in evaluations}
        _draw(axes[0], report, scores, metric.replace("_", " "))
        for axis, option in zip(axes[1:], options, strict=True):
            height = {evaluation["id"]: evaluation["configuration"][option] for evaluation in evaluations}
            _draw(axis, report, height, option)
            if min(height.values()) > 0 and max(height.values()) > 8 * min(height.values()):
                axis.set_yscale("log")
        axes[-1].set_xlabel("epoch")
        best = report["best"]
        axes[0].set_title(
            f"{report['task']}: the way to the best of {len(report['trials'])} trials "
            f"(trial {best['trial']}, {best['score']:.4f})\n"
            "dotted: weights taken from another trial",
            fontsize=9,
        )
        files = [folder / f"lineage.{kind}" for kind in ("png", "svg")]
        for file in files:
            with atomic(file) as beside:
                figure.savefig(beside, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
        plt.close(figure)
    return files
