"""How far a sweep is: a line for each run that ends, and in a terminal a bar with the time left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from glue_harness.console import console_for_reading
from glue_harness.sweep.spec import PlannedRun
from glue_harness.sweep.state import FAILED, reason_of, state_of

__all__ = ["SweepProgress"]


class SweepProgress:
    """Lines on standard output, a bar on standard error where that is a terminal.

    Args:
        runs: The runs to do.
    """

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._lines = console_for_reading()
        self._total, self._ended, self._failed = len(runs), 0, 0
        shown = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        self._bar = Progress(*columns, *left, console=shown, disable=not shown.is_terminal)

    def __enter__(self) -> SweepProgress:
        self._task = self._bar.add_task("runs", total=self._total)
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def ended(self, run: PlannedRun) -> None:
        """Note that a run is finished or has failed."""
        failed = state_of(run) == FAILED
        self._ended, self._failed = self._ended + 1, self._failed + failed
        outcome = reason_of(run) if failed else "done"
        self._lines.print(f"{self._ended}/{self._total} {run.name}: {outcome}", soft_wrap=True)
        described = f"runs ({self._failed} failed)" if self._failed else "runs"
        self._bar.update(self._task, completed=self._ended, description=described)
