"""Many runs from one specification, shared by worker processes, resumable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from finetune_common.errors import ConfigurationError, check_number
from glue_harness.console import console_for_reading
from glue_harness.sweep.progress import SweepProgress
from glue_harness.sweep.spec import PlannedRun, read_spec
from glue_harness.sweep.state import ERROR, FAILED, FINISHED, seconds_of, state_of
from glue_harness.sweep.workers import Workers

__all__ = ["sweep"]

POLL = 0.2
"""Seconds between two looks at the runs' folders."""


def sweep(spec: Path, output_dir: Path, jobs: int, dry_run: bool, retry_failed: bool = False) -> None:
    """Do the runs of a specification that are not done yet.

    Workers take one run after the other, whichever is not finished and not being worked on, so that several
    sweeps on one folder, on one machine or on several, share the work. Imports and compiled code serve all
    runs of a worker. A worker that dies is replaced; its run continues from its last checkpoint. A failing
    run leaves `error.txt` in its folder and does not stop the others.

    Args:
        spec: The specification's file.
        output_dir: Holds a folder a run.
        jobs: Worker processes, each with its share of the cores, or its GPU.
        dry_run: Only print what would be run, and how long runs of this folder took.
        retry_failed: Try runs again that failed in an earlier sweep.

    Raises:
        ConfigurationError: Something in the specification, or, after the others are done, runs that failed.
    """
    check_number("jobs", jobs, at_least=1)
    console = console_for_reading()
    planned = read_spec(spec, output_dir)
    left = [run for run in planned if state_of(run) != FINISHED]
    console.print(f"{len(planned)} runs, {len(planned) - len(left)} of them finished")
    if dry_run:
        for run in left:
            console.print(f"  {run.name}{' (failed)' * (state_of(run) == FAILED)}", soft_wrap=True)
        took = [seconds_of(run) for run in planned if state_of(run) == FINISHED]
        if took and left:
            hours = mean(took) * len(left) / jobs / 3600
            console.print(f"finished runs took {mean(took):.0f} s each: about {hours:.1f} h with {jobs} jobs")
        return
    if retry_failed:
        for run in left:
            (Path(run.config.output_dir) / ERROR).unlink(missing_ok=True)
    before = {run.name for run in left if state_of(run) == FAILED}
    _follow([run for run in left if run.name not in before], jobs, output_dir)
    failed = [run for run in left if state_of(run) == FAILED]
    if failed:
        earlier = f", {len(before)} of them in an earlier sweep" if before else ""
        raise ConfigurationError(
            f"{len(failed)} of {len(left)} runs failed{earlier}, the first is {output_dir / failed[0].name}: "
            f"its {ERROR} says why; --retry-failed tries again"
        )


def _follow(runs: Sequence[PlannedRun], jobs: int, output_dir: Path) -> None:
    """Have the runs done, and show how far they are."""
    if not runs:
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    with (
        Workers([run.config for run in runs], min(jobs, len(runs))) as workers,
        SweepProgress(runs) as progress,
    ):
        waiting = list(runs)
        while waiting:
            time.sleep(POLL)
            workers.look_after()
            for run in [run for run in waiting if state_of(run) in (FINISHED, FAILED)]:
                waiting.remove(run)
                progress.ended(run)
