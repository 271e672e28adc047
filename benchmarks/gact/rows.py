"""Rows that are measured one by one, each written at once: a script that was cut goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_common.errors import ConfigurationError
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_report, write_whole

__all__ = ["measured"]

Row = dict[str, Any]


def measured(
    folder: Path,
    settings: Mapping[str, Any],
    wanted: Iterable[Row],
    measure: Callable[[Row], Row],
    table: Callable[[dict[str, Any]], str],
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure what is not there yet, each row kept in `result.json` at once; return the whole report.

    At the end `table.md` is written, and printed.

    Args:
        folder: Where they are written.
        settings: What all rows have in common.
        wanted: What identifies each row.
        measure: What identifies a row → its numbers.
        table: The whole report → markdown.
        device: What it runs on.

    Raises:
        SystemExit: The folder holds rows of other settings, or something is missing; both are said in a line.
    """
    file = folder / "result.json"
    report = {**settings, "rows": [], "seconds": 0.0}
    if file.exists():
        report = json.loads(file.read_text(encoding="utf-8"))
        if differs := [key for key, value in settings.items() if report.get(key) != value]:
            raise ConfigurationError(
                f"{file} has another {differs[0]}: remove it or give another --output-dir"
            )
    report |= {"versions": versions(), "hardware": hardware(torch.device(device))}
    for one in wanted:
        if not any(one.items() <= row.items() for row in report["rows"]):
            began = time.perf_counter()
            try:
                report["rows"].append({**one, **measure(one)})
            except ConfigurationError as error:
                raise SystemExit(f"error: {error}") from None
            report["seconds"] = round(report["seconds"] + time.perf_counter() - began, 1)
            write_whole(file, json.dumps(report, indent=1) + "\n")
    write_report(folder, report, table(report))
    return report
