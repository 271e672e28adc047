"""Tables for the terminal, and as csv and markdown files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from glue_harness.console import console_for_reading
from glue_harness.records import write_whole
from glue_harness.report.aggregate import Row

__all__ = ["markdown", "print_run", "print_summary", "write_tables"]


def _with_spread(value: tuple[float, float | None]) -> str:
    mean, spread = value
    return f"{mean:.4f}" if spread is None else f"{mean:.4f} ± {spread:.4f}"


def _cells(row: Row) -> dict[str, str]:
    return {
        "task": row.task,
        "model": Path(row.model).name,
        "setting": row.setting,
        "runs": str(len(row.seeds)),
        "last": ", ".join(
            f"{metric.replace('_', ' ')} {_with_spread(value)}" for metric, value in row.metrics.items()
        ),
        "best": _with_spread(row.best[row.primary]),
        "examples/s": f"{row.examples_per_second:.0f}",
        "peak memory": f"{row.peak_memory_bytes / 2**20:.0f} MiB",
        "trainable": f"{row.trainable:,}",
    }


def print_summary(rows: Sequence[Row], console: Console) -> None:
    """Print one table of all rows; the best mean of each task is bold."""
    caption = "last: after the last step; best: the highest evaluation; ±: sd over seeds"
    table = Table(title="runs", caption=caption)
    numbers = ("runs", "examples/s", "peak memory", "trainable")
    for name in _cells(rows[0]):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name == "task")
    leading: dict[str, float] = {}
    for row in rows:
        leading[row.task] = max(leading.get(row.task, float("-inf")), row.metrics[row.primary][0])
    for row, following in zip_longest(rows, rows[1:]):
        leads = row.metrics[row.primary][0] == leading[row.task]
        ends_task = following is not None and following.task != row.task
        table.add_row(*_cells(row).values(), style="bold" if leads else "", end_section=ends_task)
    console.print(table)


def _csv(rows: Sequence[Row]) -> str:
    lines = [
        {
            "task": row.task,
            "model": row.model,
            "setting": row.setting,
            "seeds": " ".join(map(str, row.seeds)),
            "metric": metric,
            "mean": mean,
            "sd": spread,
            "best_mean": row.best[metric][0],
            "best_sd": row.best[metric][1],
            "examples_per_second": row.examples_per_second,
            "peak_memory_bytes": row.peak_memory_bytes,
            "trainable_parameters": row.trainable,
            "runs": " ".join(row.runs),
        }
        for row in rows
        for metric, (mean, spread) in row.metrics.items()
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def markdown(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Return a markdown table of all rows, with all columns or those named."""
    wanted = columns or list(_cells(rows[0]))
    cells = [{name: _cells(row)[name] for name in wanted} for row in rows]
    lines = ["| " + " | ".join(cells[0]) + " |", "|" + " --- |" * len(cells[0])]
    lines += ["| " + " | ".join(value.replace("|", "\\|") for value in row.values()) + " |" for row in cells]
    return "\n".join(lines) + "\n"


def write_tables(rows: Sequence[Row], output_dir: Path) -> list[Path]:
    """Write `summary.csv` (full precision) and `summary.md`; returns their paths."""
    output_dir.mkdir(parents=True, exist_ok=True)
    files = {output_dir / "summary.csv": _csv(rows), output_dir / "summary.md": markdown(rows)}
    for path, text in files.items():
        write_whole(path, text)
    return list(files)


def print_run(result: Mapping[str, Any], folder: Path, finished_before: bool) -> None:
    """Print what came out of one run, and where it is."""
    console = console_for_reading()
    if finished_before:
        said = f"{folder}: this run is finished, nothing was done; --overwrite starts anew"
        console.print(said, soft_wrap=True)
    last, best = result["metrics"]["last"], result["metrics"]["best"]
    scores = ", ".join(f"{name} [bold]{value:.4f}[/bold]" for name, value in last.items())
    seconds = sum(result["seconds"].values())
    primary = result["primary"]
    console.print(
        f"{result['task']}: {scores} after {result['steps']:,} steps (best {primary} {best[primary]:.4f}), "
        f"{seconds:.0f} s, {result['examples_per_second']:.0f} examples/s",
        soft_wrap=True,
    )
    console.print(f"result: {folder / 'result.json'}", soft_wrap=True)
