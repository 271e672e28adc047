"""The report of committed results, as the documentation shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from glue_harness.report.contents import gather
from glue_harness.report.page import write_page
from glue_harness.report.plots import draw_figures
from glue_harness.report.tables import tables_of
from reproduce.catalogue import BENCHMARKS, Benchmark
from reproduce.costs import PLAIN

__all__ = ["page", "place"]


def place(benchmark: Benchmark) -> Path:
    """Return where the documentation has the page of a benchmark."""
    return BENCHMARKS.parent / "docs" / "benchmarks" / f"{benchmark.name.replace('.', '-')}.html"


def page(benchmark: Benchmark, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the page that `glue-harness report` makes of results, against plain AdamW.

    Args:
        benchmark: Gives the page its name.
        results: Kept results; the plain settings are among them.
    """
    contents = gather(results, baseline=PLAIN)
    with TemporaryDirectory() as folder:
        figures = draw_figures(contents, Path(folder))
        made = write_page(contents, tables_of(contents), figures, Path(folder), benchmark.name)
        return made.read_text(encoding="utf-8")
