"""Charts that colour-blind readers can read, as PNG and SVG, each with a text that describes it."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from finetune_common.aliases import JsonObject, Settings
from glue_harness.files import atomic
from glue_harness.report.aggregate import Row
from glue_harness.report.contents import Contents
from glue_harness.report.panels import COLOURS, MARKERS, Panel, panels_of
from glue_harness.report.statistics import mean_interval

__all__ = ["Figure", "draw_figures"]

WRAP = 40
"""Characters in a line of a setting's name beside its bar."""
TICKS, STEPS = 5, (1, 2, 2.5, 5, 10)
"""Most intervals of an axis; few, since ticks take much of the drawing time."""

FEWEST = 3
"""Fewest seeds for an error bar: with two, Student's interval is twelve times as long as their distance."""
BARS = f"95 % interval of the mean, from {FEWEST} seeds on"
"""What an error bar shows, in every chart."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
}


@dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes:
        png: The picture for articles and slides.
        svg: The same, scalable.
        title: Its title.
        text: A description, for readers who do not see it.
    """

    png: Path
    svg: Path
    title: str
    text: str


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4g} to {max(values):.4g}"


def _interval(scores: Sequence[float]) -> tuple[float, float] | None:
    return mean_interval(scores) if len(scores) >= FEWEST else None


def _reach(row: Row, evaluation: str) -> tuple[float, float]:
    """Return the lengths of a row's error bar below and above its score; 0 with too few seeds."""
    value, _ = row.score(evaluation)
    low, high = _interval(list(row.seed_scores(evaluation).values())) or (value, value)
    return max(value - low, 0.0), max(high - value, 0.0)


def _curve(runs: Sequence[JsonObject], metric: str) -> tuple[list[float], np.ndarray]:
    """Return the first run's epochs, and the scores of all runs with as many evaluations."""
    epochs = [entry["epoch"] for entry in runs[0]["history"]]
    scores = [[entry["metrics"][metric] for entry in run["history"]] for run in runs]
    return epochs, np.array([s for s in scores if len(s) == len(epochs)])


def _curves(axes: Axes, panel: Panel) -> str | None:
    drawn = 0
    for row, name, looks in panel.numbered():
        epochs, scores = _curve(panel.runs_of(row), row.primary)
        if len(epochs) < 2:
            continue
        drawn += 1
        marker = looks["marker"] if len(epochs) < 20 else None
        axes.plot(epochs, scores.mean(axis=0), label=name, **{**looks, "marker": marker})
        bands = [_interval(column.tolist()) for column in scores.T]
        if None not in bands:
            low, high = zip(*(band for band in bands if band), strict=True)
            axes.fill_between(epochs, low, high, color=looks["color"], alpha=0.15, lw=0)
    axes.set(xlabel="epoch", ylabel=panel.metric)
    if drawn:
        _line_without_skill(axes, panel, axes.axhline)
        axes.legend(fontsize="x-small")
    return f"{drawn} curves of {panel.metric} by epoch, best setting '{panel.names[0]}'" if drawn else None


def _bars(axes: Axes, panel: Panel) -> str | None:
    """Draw a row of dots for each setting, on an axis that includes the score of a model without skill."""
    for number, (row, _, looks) in enumerate(panel.numbered()):
        scores = list(row.seed_scores(panel.evaluation).values())
        value = row.score(panel.evaluation)[0]
        axes.plot(scores, [-number] * len(scores), ".", color=looks["color"], alpha=0.5, markersize=6)
        if interval := _interval(scores):
            axes.plot(interval, [-number] * 2, color=looks["color"], lw=1.5, marker="|")
        axes.plot(value, -number, marker=looks["marker"], color=looks["color"], markersize=7)
    axes.set_yticks([-n for n in range(len(panel.names))], labels=_wrapped(panel.names), fontsize="x-small")
    axes.set_ylim(-len(panel.names) + 0.4, 0.6)
    axes.set(xlabel=f"{panel.metric} ({panel.evaluation} evaluation)")
    values = [row.score(panel.evaluation)[0] for row in panel.rows]
    listed = "; ".join(f"{name} {value:.4g}" for name, value in zip(panel.names, values, strict=True))
    skilless = _line_without_skill(axes, panel, axes.axvline)
    return f"{panel.metric}: {listed}{skilless}"


def _line_without_skill(axes: Axes, panel: Panel, line: Callable[..., object]) -> str:
    """Draw the score of a model that has learned nothing; return it in words, if known."""
    if panel.without_skill is None:
        return ""
    value, name = panel.without_skill
    line(value, color="grey", linestyle=(0, (1, 2)), lw=1.2, label=name)
    if line == axes.axvline:
        axes.legend(fontsize="x-small", loc="lower left")
    return f"; {name} {value:.4g}"


def _rates(axes: Axes, panel: Panel) -> str | None:
    """Draw the score against the learning rate, for settings that differ only in it."""
    alike: dict[str, dict[float, Row]] = {}
    for row in panel.rows:
        if row.options.get("optimizer.lr"):
            rest = {"model": row.model} | {k: v for k, v in row.options.items() if k != "optimizer.lr"}
            alike.setdefault(json.dumps(rest, sort_keys=True), {})[row.options["optimizer.lr"]] = row
    series = [dict(sorted(rows.items())) for rows in alike.values() if len(rows) > 1]
    for number, rows in enumerate(series):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        scores = [row.score(panel.evaluation)[0] for row in rows.values()]
        name = panel.names[panel.rows.index(next(iter(rows.values())))]
        axes.errorbar(
            list(rows),
            scores,
            yerr=np.array([_reach(row, panel.evaluation) for row in rows.values()]).T,
            color=colour,
            marker=marker,
            capsize=3,
            label=", ".join(part for part in name.split(", ") if not part.startswith("lr ")),
        )
    axes.set(xscale="log", xlabel="learning rate", ylabel=panel.metric)
    rates = sorted({rate for rows in series for rate in rows})
    axes.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
    axes.minorticks_off()
    if not series:
        return None
    _line_without_skill(axes, panel, axes.axhline)
    axes.legend(fontsize="x-small")
    best = [max(rows, key=lambda rate: rows[rate].score(panel.evaluation)[0]) for rows in series]
    return f"{len(series)} settings, best rates {', '.join(f'{rate:g}' for rate in best)}"


PARTS = ("data", "forward", "backward", "gradient", "optimizer")


def _times(axes: Axes, panel: Panel) -> str | None:
    left = np.zeros(len(panel.rows))
    for part, colour, hatch in zip(PARTS, COLOURS, ("", "//", "..", "xx", "--"), strict=False):
        widths = np.array(
            [
                1000 * np.mean([run["seconds"].get(part, 0.0) / run["steps"] for run in panel.runs_of(row)])
                for row in panel.rows
            ]
        )
        axes.barh(
            [-n for n in range(len(widths))], widths, left=left, color=colour, hatch=hatch, label=part,
            edgecolor="white", lw=0.5, height=0.7,
        )  # fmt: skip
        left += widths
    axes.set_yticks([-n for n in range(len(panel.names))], labels=_wrapped(panel.names), fontsize="x-small")
    axes.set(xlabel="milliseconds a step")
    if axes is axes.figure.axes[0]:
        axes.legend(fontsize="x-small", loc="upper right")
    axes.margins(x=0.25)
    return f"{_range(left.tolist())} milliseconds a step"


def _memory(axes: Axes, panel: Panel) -> str | None:
    mib = [row.peak_memory_bytes / 2**20 for row in panel.rows]
    if len(panel.rows) < 2:
        return None
    for row, name, looks in panel.numbered():
        axes.errorbar(
            row.peak_memory_bytes / 2**20, row.score(panel.evaluation)[0],
            yerr=np.array([_reach(row, panel.evaluation)]).T, color=looks["color"], marker=looks["marker"],
            linestyle="none", capsize=3, label=name,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set(xlabel="peak memory, MiB", ylabel=panel.metric)
    _line_without_skill(axes, panel, axes.axhline)
    axes.legend(fontsize="x-small")
    return f"{len(panel.rows)} settings between {_range(mib)} MiB"


CHARTS: dict[str, tuple[str, Callable[[Axes, Panel], str | None]]] = {
    "curves": (f"Learning curves on the dev set, band: {BARS}", _curves),
    "scores": (f"Scores, dots: seeds, bar: {BARS}", _bars),
    "learning-rates": (f"Score against learning rate, bar: {BARS}", _rates),
    "time": ("Time of a step by part", _times),
    "memory": (f"Score against peak memory, bar: {BARS}", _memory),
}
"""File name → title, and the function that draws a task's part and describes it, or returns None."""


def _wrapped(names: Sequence[str]) -> list[str]:
    return [textwrap.fill(name, WRAP) for name in names]


def _grid(panels: Sequence[Panel], named_rows: bool) -> tuple[plt.Figure, Sequence[Axes]]:
    """Return a figure with a place for every panel; margins are fixed, since layout engines take seconds."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    longest = max(len(name) for panel in panels for name in panel.names) if named_rows else 8
    left = 0.075 * min(WRAP, longest) + 0.2
    width, height = columns * (left + 4.0), 3.6 * lines + 0.6
    figure, grid = plt.subplots(lines, columns, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=left / width,
        right=1 - 0.15 / width,
        top=1 - 0.75 / height,
        bottom=0.6 / height,
        wspace=left / 3.85,
        hspace=0.35,
    )
    places = grid.flatten().tolist()
    for axes in places:
        axes.xaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(TICKS, steps=STEPS))
    return figure, places


def _draw(name: str, panels: Sequence[Panel], folder: Path) -> Figure | None:
    with plt.rc_context(STYLE):
        return _draw_with_style(name, panels, folder)


def _draw_with_style(name: str, panels: Sequence[Panel], folder: Path) -> Figure | None:
    title, draw = CHARTS[name]
    figure, places = _grid(panels, draw in (_bars, _times))
    texts = []
    for axes, panel in zip(places, panels, strict=False):
        if text := draw(axes, panel):
            axes.set_title(panel.task, loc="left", fontsize="medium", y=1.0)
            texts.append(f"{panel.task}: {text}")
        else:
            axes.set_visible(False)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    chart = Figure(folder / f"{name}.png", folder / f"{name}.svg", title, f"{title}. {'. '.join(texts)}.")
    if texts:
        wrapped = textwrap.fill(title, round(9 * figure.get_figwidth()))
        figure.suptitle(wrapped, fontsize="large", y=1 - 0.15 / figure.get_figheight())
        metadata = {"Date": None, "Title": title, "Description": chart.text}
        formats: dict[Path, Settings] = {chart.png: {"dpi": 110}, chart.svg: {"metadata": metadata}}
        for file, options in formats.items():
            with atomic(file) as beside:
                figure.savefig(beside, **options)
    plt.close(figure)
    return chart if texts else None


def draw_figures(contents: Contents, folder: Path, executor: Executor | None = None) -> list[Figure]:
    """Draw every chart that the runs have data for, with a part for each task.

    Args:
        contents: The report; a task's eight best settings are drawn.
        folder: Receives `<chart>.png` and `<chart>.svg`.
        executor: Processes that draw one chart each; without it charts are drawn one after another.

    Returns:
        The charts: `curves`, `scores`, `learning-rates`, `time`, `memory`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    panels = panels_of(contents)
    charts = (executor.map if executor else map)(partial(_draw, panels=panels, folder=folder), CHARTS)
    return [figure for figure in charts if figure is not None]
