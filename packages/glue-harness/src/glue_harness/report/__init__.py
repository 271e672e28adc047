"""From the results of runs to what one looks at: tables and charts."""

from __future__ import annotations

from pathlib import Path

from finetune_common.errors import ConfigurationError
from glue_harness.console import console_for_reading
from glue_harness.records import read_results
from glue_harness.report.aggregate import summarise
from glue_harness.report.tables import print_summary, write_tables

__all__ = ["report"]


def report(folder: Path, output_dir: Path) -> None:
    """Compare the runs below a folder.

    Args:
        folder: Holds runs, at any depth.
        output_dir: Receives `summary.csv`, `summary.md` and `figures/<task>.png`.

    Raises:
        ConfigurationError: No runs, a damaged result, or a folder that cannot be written.
    """
    from glue_harness.report.plots import plot_tasks

    results = read_results(folder)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--output-dir {output_dir}: {error.strerror}: give a folder that can be written"
        ) from None
    summary = summarise(results)
    console = console_for_reading()
    print_summary(summary, console)
    tables = write_tables(summary, output_dir)
    figures = plot_tasks(results, summary, output_dir / "figures")
    console.print(f"tables: {', '.join(map(str, tables))}", soft_wrap=True)
    console.print(f"charts: {', '.join(map(str, figures))}", soft_wrap=True)
