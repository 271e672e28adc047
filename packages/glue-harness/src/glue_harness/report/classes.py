"""Confusion matrix, precision and recall of each class for the best setting of a task."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from finetune_common.aliases import JsonObject
from glue_harness.report.aggregate import Row
from glue_harness.report.contents import Contents
from glue_harness.report.render import Cell, Table, as_latex, as_markdown
from glue_harness.run.parts import has_own_rows
from glue_harness.run.records import write_whole

__all__ = ["class_tables", "narrow", "write_class_tables"]

SHOWN = 12
"""With more classes, only the csv file has the confusion matrix: the table would be too wide."""

SCORES = ("precision", "recall", "f1")

SHORT = 40
"""Letters of a task's name in a file's: at most 160 bytes, where a name may have 255."""


def class_tables(contents: Contents) -> dict[str, Table]:
    """Return a table for each user's task with classes: its best setting, all seeds together.

    Args:
        contents: The report.

    Returns:
        `classes-<task>` → table. Rows are true classes, columns predicted ones. Where a task's name is no
        name of a file, it is changed and ends in a digest of the whole, so that no two tables meet.
    """
    by_folder = {result["folder"]: result for result in contents.results}
    tables: dict[str, Table] = {}
    for row in contents.rows:  # the best setting of a task comes first
        name = f"classes-{_for_a_file(row.task)}"
        reports = [_class_report(by_folder[folder]) for folder in row.runs]
        if name not in tables and reports and all(reports):
            tables[name] = _table(row, [report for report in reports if report])
    return tables


def _for_a_file(task: str) -> str:
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in task)[:SHORT]
    return plain if plain == task else f"{plain}-{sha256(task.encode()).hexdigest()[:8]}"


def _class_report(result: JsonObject) -> JsonObject | None:
    return next(iter((result.get("classes") or {}).values()), None) if has_own_rows(result) else None


def _table(row: Row, reports: Sequence[JsonObject]) -> Table:
    names = list(reports[0]["classes"])
    means = {
        name: [np.mean([report["classes"][name][score] for report in reports]) for score in SCORES]
        for name in names
    }
    counts = {name: sum(report["classes"][name]["rows"] for report in reports) for name in names}
    columns = {"true": False}
    matrix = None
    if all("confusion" in report for report in reports):
        matrix = np.sum([report["confusion"] for report in reports], axis=0)
        columns |= {f"as {name}": True for name in names}
    columns |= {"precision": True, "recall": True, "F1": True, "rows": True}
    rows = []
    for place, name in enumerate(names):
        cells = [Cell(name)]
        if matrix is not None:
            cells += [Cell(f"{count:,}", bold=place == other) for other, count in enumerate(matrix[place])]
        cells += [Cell(f"{value:.3f}") for value in means[name]] + [Cell(f"{counts[name]:,}")]
        rows.append(cells)
    seeds = f"{len(reports)} runs together" if len(reports) > 1 else "one run"
    return Table(f"{row.task}: predictions of each class ({row.setting}, {seeds})", columns, rows)


def narrow(table: Table) -> Table:
    """Return a table that fits a screen: with many classes, without the confusion matrix."""
    counts = [number for number, name in enumerate(table.columns) if name.startswith("as ")]
    if len(counts) <= SHOWN:
        return table
    places = [number for number in range(len(table.columns)) if number not in counts]
    names = list(table.columns)
    return Table(
        table.title,
        {names[number]: table.columns[names[number]] for number in places},
        [[row[number] for number in places] for row in table.rows],
    )


def write_class_tables(tables: Mapping[str, Table], output_dir: Path) -> list[Path]:
    """Write each table as csv, and the part that fits a page as md and tex.

    Args:
        tables: From `class_tables`.
        output_dir: Exists.

    Returns:
        The files.
    """
    files = []
    for name, table in tables.items():
        written = io.StringIO(newline="")
        writer = csv.writer(written, lineterminator="\n")
        writer.writerows([list(table.columns), *([cell.text for cell in row] for row in table.rows)])
        shown = narrow(table)
        texts = {"csv": written.getvalue(), "md": as_markdown(shown), "tex": as_latex(shown)}
        for ending, text in texts.items():
            files.append(output_dir / f"{name}.{ending}")
            write_whole(files[-1], text)
    return files
