"""Rows that are measured one by one, each written at once: a run that was cut goes on where it stopped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_report

__all__ = ["add_options", "measured"]

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Add where rows are written, and whether those that are there stay."""
    parser.add_argument("--output-dir", type=Path, default=folder)
    parser.add_argument("--resume", action="store_true", help="measure only the rows that are not there yet")


def measured(
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    wanted: Iterable[Row],
    measure: Callable[[Row], Row],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measure what is wanted; after each row write `result.json` and `table.md`.

    Args:
        options: With `output_dir` and `resume`.
        settings: What all rows have in common; rows of other settings do not stay.
        wanted: What identifies each row.
        measure: What identifies a row → the row.
        table: The whole report → markdown.
    """
    kept: list[Row] = []
    file = options.output_dir / "result.json"
    if options.resume and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        kept = before["rows"] if all(before.get(key) == value for key, value in settings.items()) else []
    rows: list[Row] = []
    for one in wanted:
        known = next((row for row in kept if one.items() <= row.items()), None)
        rows.append({**one, **measure(one)} if known is None else known)
        if known is None:
            others = [row for row in kept if row not in rows]
            report: dict[str, Any] = {"rows": rows + others, **settings}
            report |= {"versions": versions(), "hardware": hardware(torch.device("cpu"))}
            write_report(options.output_dir, report, table(report))
