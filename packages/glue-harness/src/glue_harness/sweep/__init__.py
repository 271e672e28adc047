"""Many runs from one specification, shared by worker processes, resumable."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from finetune_common.errors import ConfigurationError, check_choice, check_number
from glue_harness.config.fields import RunConfig
from glue_harness.console import console_for_reading
from glue_harness.cost.sweeps import forecast
from glue_harness.extras import need
from glue_harness.run.records import MODEL
from glue_harness.sweep.keeping import check_disk, keep_models
from glue_harness.sweep.progress import SweepProgress
from glue_harness.sweep.spec import PlannedRun, read_keep, read_spec
from glue_harness.sweep.state import ERROR, FAILED, FINISHED, seconds_of, state_of
from glue_harness.sweep.workers import Workers, warm_up

__all__ = ["LAUNCHERS", "sweep"]

LAUNCHERS = ("local", "ray", "slurm")


def sweep(
    spec: Path,
    output_dir: Path,
    jobs: int,
    dry_run: bool,
    retry_failed: bool = False,
    launcher: str = "local",
    slurm: str = "",
    scale: str | None = None,
) -> None:
    """Do the runs of a specification that are not done yet.

    Each worker takes the next run that is unfinished and that no other worker has, so that several sweeps can
    share one folder, on one machine or on several. Imports and compiled code serve all runs of a worker. A
    worker that dies is replaced; its run continues from its last checkpoint. A run that fails, or ends four
    workers, leaves `error.txt` in its folder and does not stop the others.

    Args:
        spec: The specification's file.
        output_dir: Holds a folder for each run.
        jobs: Runs at once, each with its share of the cores, or its GPU.
        dry_run: Only print the planned runs, the disk, memory and hours they need, and how long runs of this
            folder took.
        retry_failed: Try runs that failed in an earlier sweep again.
        launcher: `local` (processes on this machine), `ray` (tasks of a cluster) or `slurm` (a job array).
        slurm: What a SLURM job requests: `partition=gpu,timeout_min=240`.
        scale: The scale (`glue_harness.sweep.scales.at_scale`).

    Raises:
        ConfigurationError: A fault in the specification, too little disk, or, when all others are done,
            failed runs.
    """
    check_number("jobs", jobs, at_least=1)
    check_choice("launcher", launcher, LAUNCHERS)
    if slurm and launcher != "slurm":
        raise ConfigurationError(f"--slurm {slurm} needs --launcher slurm: give both, or leave it out")
    if launcher == "local" and not dry_run:
        warm_up()
    console = console_for_reading()
    planned, keep = read_spec(spec, output_dir, scale), read_keep(spec, scale)
    left = [run for run in planned if state_of(run) != FINISHED]
    console.print(f"{len(planned)} runs, {len(planned) - len(left)} of them are finished")
    try:
        disk = check_disk(output_dir, [run.config for run in left], keep, jobs) if left else ""
    except ConfigurationError as error:
        if not dry_run:
            raise
        disk = str(error)
    if dry_run:
        console.print(disk, soft_wrap=True)
        if left:
            console.print(forecast([run.config for run in left], jobs), soft_wrap=True)
        for run in left:
            console.print(f"  {run.name}{' (failed)' * (state_of(run) == FAILED)}", soft_wrap=True)
        took = [seconds_of(run) for run in planned if state_of(run) == FINISHED]
        if took and left:
            hours = mean(took) * len(left) / jobs / 3600
            console.print(
                f"finished runs took {mean(took):.0f} s each: about {hours:.1f} h are left with --jobs {jobs}"
            )
        return
    if retry_failed:
        for run in left:
            (Path(run.config.output_dir) / ERROR).unlink(missing_ok=True)
    _settle(planned, keep)
    before = {run.name for run in left if state_of(run) == FAILED}
    runs = [run for run in left if run.name not in before]
    if runs:
        output_dir.mkdir(parents=True, exist_ok=True)
        configs = [run.config for run in runs]
        _follow(runs, _workers(launcher, configs, min(jobs, len(runs)), output_dir, slurm, keep))
        _settle(planned, keep)
    failed = [run for run in left if state_of(run) == FAILED]
    if failed:
        earlier = f", {len(before)} of them in an earlier sweep" if before else ""
        raise ConfigurationError(
            f"{len(failed)} of {len(left)} runs failed{earlier}: read {output_dir / failed[0].name / ERROR}; "
            "--retry-failed tries them again"
        )


def _settle(planned: Sequence[PlannedRun], keep: str) -> None:
    """Finish the clean-up of runs whose workers ended before they could."""
    for folder in (Path(run.config.output_dir) for run in planned if state_of(run) == FINISHED):
        if (folder / MODEL).is_dir():
            keep_models(folder, keep)


def _workers(name: str, configs: Sequence[RunConfig], jobs: int, folder: Path, slurm: str, keep: str) -> Any:
    """Return a launcher: a context whose `look_after()` is called every `poll` seconds."""
    if name == "local":
        return Workers(configs, jobs, keep)
    if name == "ray":
        need("ray", "ray")
        from glue_harness.sweep.on_ray import RayTasks

        return RayTasks(configs, jobs, keep)
    need("slurm", "submitit")
    from glue_harness.sweep.on_slurm import SlurmArray, read_options

    return SlurmArray(configs, jobs, folder.resolve(), read_options(slurm), keep)


def _follow(runs: Sequence[PlannedRun], workers: Any) -> None:
    """Do the runs and show their progress."""
    with workers, SweepProgress(runs) as progress:
        waiting = list(runs)
        while waiting:
            time.sleep(workers.poll)
            workers.look_after()
            for run in [run for run in waiting if state_of(run) in (FINISHED, FAILED)]:
                waiting.remove(run)
                progress.ended(run)
