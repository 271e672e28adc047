"""The data of a task for a report's charts, and the look of each of its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune_common.aliases import JsonObject, Settings
from glue_harness.report.aggregate import Row, model_name
from glue_harness.report.contents import Contents
from glue_harness.report.unskilled import without_skill

__all__ = ["COLOURS", "MARKERS", "Panel", "panels_of"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

LINES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX"
MOST = 8
"""How many settings a task's chart shows, best first."""


@dataclass(frozen=True)
class Panel:
    """A task's data for the charts: its rows, best first, their names, and their runs by folder.

    `without_skill` is the score of a model that has learned nothing, with its name; None if unknown.
    """

    task: str
    rows: Sequence[Row]
    names: Sequence[str]
    evaluation: str
    runs: Mapping[str, JsonObject]
    without_skill: tuple[float, str] | None = None

    @property
    def metric(self) -> str:
        """The primary metric, in words."""
        return self.rows[0].primary.replace("_", " ")

    def runs_of(self, row: Row) -> list[JsonObject]:
        """Return the runs of a row."""
        return [self.runs[folder] for folder in row.runs]

    def numbered(self) -> Iterator[tuple[Row, str, Settings]]:
        """Yield every row with its name and looks."""
        for number, (row, name) in enumerate(zip(self.rows, self.names, strict=True)):
            looks = {
                "color": COLOURS[number % len(COLOURS)],
                "linestyle": LINES[number // len(COLOURS) % len(LINES)],
                "marker": MARKERS[number % len(MARKERS)],
            }
            yield row, name, looks


def panels_of(contents: Contents) -> list[Panel]:
    """Return a panel for each task of a report."""
    runs = {result["folder"]: result for result in contents.results}
    panels = []
    for task in dict.fromkeys(row.task for row in contents.rows):
        of_task = [row for row in contents.rows if row.task == task]
        rows = sorted(of_task, key=lambda row: -row.score(contents.evaluation)[0])[:MOST]
        several = len({row.model for row in rows}) > 1
        names = [f"{model_name(r.model)}, {r.setting}" if several else r.setting for r in rows]
        shown = {folder: runs[folder] for row in rows for folder in row.runs}
        floor = without_skill(rows[0].primary, next(iter(shown.values())))
        panels.append(Panel(task, rows, names, contents.evaluation, shown, floor))
    return panels
