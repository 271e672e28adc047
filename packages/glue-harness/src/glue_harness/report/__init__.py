"""From the results of runs to what one looks at: tables, charts and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_common.errors import ConfigurationError
from glue_harness.console import console_for_reading
from glue_harness.records import read_results
from glue_harness.report.contents import gather
from glue_harness.report.render import print_table
from glue_harness.report.tables import tables_of, write_tables

__all__ = ["report"]


def report(
    folder: Path,
    output_dir: Path,
    *,
    protocol: str = "mean",
    evaluation: str = "last",
    test: str = "permutation",
    baseline: str | None = None,
    where: str | None = None,
    group_by: Sequence[str] = (),
) -> None:
    """Compare the runs below a folder.

    Args:
        folder: Holds runs, at any depth.
        output_dir: Receives `index.html`, `summary.{csv,md,tex}`, `comparison.{csv,md,tex}` where there is a
            baseline, `averages.{csv,md,tex}` where a setting has all tasks, and `figures/`.
        protocol: How the runs of a setting become one number: `mean`, `median`, `best-lr` or `best`.
        evaluation: Which evaluation of a run counts, `last` or `best`.
        test: How settings are compared, `permutation` or `wilcoxon`.
        baseline: Condition that is true of one setting a task, e.g. `optimizer=adamw`.
        where: Condition that runs have to meet, e.g. `task=rte|mrpc,optimizer=adamw`.
        group_by: Options by which runs are put together; by default all but the seed.

    Raises:
        ConfigurationError: No runs, a damaged result, a condition or option that no run has, or a folder that
            cannot be written.
    """
    from glue_harness.report.page import write_page
    from glue_harness.report.plots import draw_figures

    contents = gather(
        read_results(folder),
        protocol=protocol,
        evaluation=evaluation,
        test=test,
        baseline=baseline,
        where=where,
        group_by=group_by,
    )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"--output-dir {output_dir}: {error.strerror}: give a folder that can be written"
        ) from None
    console = console_for_reading()
    tables = tables_of(contents)
    for name, table in tables.items():
        print_table(table, console, f"{name}.csv")
    files = write_tables(contents, tables, output_dir)
    console.print(f"tables: {', '.join(map(str, files))}", soft_wrap=True)
    figures = draw_figures(contents, output_dir / "figures")
    console.print(f"charts: {', '.join(str(figure.png) for figure in figures)}", soft_wrap=True)
    page = write_page(contents, tables, figures, output_dir, folder.resolve().name)
    console.print(f"page: {page}", soft_wrap=True)
