"""From the results of runs to tables, charts and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

from glue_harness.config.fields import DEFAULTS, SLOTS
from glue_harness.config.matching import check_keys
from glue_harness.console import console_for_reading
from glue_harness.files import writing
from glue_harness.report.classes import class_tables, narrow, write_class_tables
from glue_harness.report.contents import gather
from glue_harness.report.protocols import EVALUATIONS, PROTOCOLS
from glue_harness.report.published import compare, measured, table_of
from glue_harness.report.render import as_markdown, print_table
from glue_harness.report.tables import tables_of, write_tables
from glue_harness.report.targets import read_targets
from glue_harness.run.records import read_results, write_whole

__all__ = ["report"]

MANY_TASKS = 4
"""From this many tasks, drawing the charts takes longer than starting processes."""


@contextmanager
def _painters(processes: int, tasks: int) -> Iterator[Executor | None]:
    """Start processes that draw charts, if there are enough tasks; they load while runs are compared."""
    if processes < 2 or tasks < MANY_TASKS:
        yield None
        return
    from glue_harness.report import plots

    executor = ProcessPoolExecutor(
        min(processes, len(plots.CHARTS)),
        get_context("spawn"),
        initializer=import_module,
        initargs=(plots.__name__,),
    )
    try:
        executor.submit(bool)  # the first call starts the processes
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def report(
    folder: Path,
    output_dir: Path,
    *,
    protocol: str = "mean",
    evaluation: str = "last",
    test: str = "permutation",
    baseline: str | None = None,
    margin: float | None = None,
    primary: str | None = None,
    where: str | None = None,
    group_by: Sequence[str] = (),
    processes: int = 1,
    targets: Path | None = None,
    published_runs: int = 1,
) -> None:
    """Compare the runs below a folder.

    Args:
        folder: Holds runs, at any depth.
        output_dir: Receives `index.html`, `summary.{csv,md,tex}`, `comparison.{csv,md,tex}` where there is a
            baseline, `averages.{csv,md,tex}` where a setting has all tasks, `classes-<task>.{csv,md,tex}` for
            the classes of a user's task, and `figures/`.
        protocol: How the runs of a setting become one number: `mean`, `median`, `best-lr` or `best`.
        evaluation: The evaluation that counts, `last` or `best`.
        test: How settings are compared, `permutation` or `wilcoxon`.
        baseline: Condition that selects one setting for each task, e.g. `optimizer=adamw`.
        margin: Smallest difference from the baseline that matters, in the unit of the metric: 0.005 is
            half a point of accuracy. Without it nothing is called equal.
        primary: Condition that selects the comparisons planned before the runs; the others are exploratory.
        where: Condition that selects runs, e.g. `task=rte|mrpc,optimizer=adamw`.
        group_by: Options that define a setting; by default all but the seed.
        processes: How many draw the charts, from four tasks on. With 2 or more a script needs the guard
            `if __name__ == "__main__":`, as always when Python starts processes.
        targets: A csv file of published numbers (`glue_harness.report.targets.read_targets`): each beside
            ours, with an interval and a verdict, on the screen, in `published.md` and on the page.
        published_runs: How many runs are behind a published number.

    Raises:
        ConfigurationError: No runs, a damaged result, a condition or option that no run has, or a folder that
            cannot be written.
    """
    from glue_harness.report.page import write_page
    from glue_harness.report.plots import draw_figures

    published = read_targets(targets) if targets else ()
    for target in published:
        check_keys(f"--targets {targets}: run", dict.fromkeys(target.run), [{**DEFAULTS, **SLOTS}])
    results = read_results(folder)
    with _painters(processes, len({result["task"] for result in results})) as executor:
        contents = gather(
            results,
            protocol=protocol,
            evaluation=evaluation,
            test=test,
            baseline=baseline,
            margin=margin,
            primary=primary,
            where=where,
            group_by=group_by,
        )
        with writing(f"--output-dir {output_dir}"):
            output_dir.mkdir(parents=True, exist_ok=True)
        console = console_for_reading()
        tables = tables_of(contents)
        for name, table in tables.items():
            print_table(table, console, f"{name}.csv")
        of_classes = class_tables(contents)
        for name, table in of_classes.items():
            print_table(narrow(table), console, f"{name}.csv")
        files = write_tables(contents, tables, output_dir) + write_class_tables(of_classes, output_dir)
        beside = {}
        if published:
            measurements = measured(contents.results, evaluation)
            lines, _ = compare(published, measurements, protocol, published_runs)
            beside["published"] = table_of(lines, (PROTOCOLS[protocol].meaning, EVALUATIONS[evaluation]))
            print_table(beside["published"], console, "published.md")
            files.append(output_dir / "published.md")
            write_whole(files[-1], as_markdown(beside["published"]))
        console.print(f"tables: {', '.join(map(str, files))}", soft_wrap=True)
        figures = draw_figures(contents, output_dir / "figures", executor)
    console.print(f"charts: {', '.join(str(figure.png) for figure in figures)}", soft_wrap=True)
    shown = tables | {name: narrow(table) for name, table in of_classes.items()} | beside
    page = write_page(contents, shown, figures, output_dir, folder.resolve().name)
    console.print(f"page: {page}", soft_wrap=True)
