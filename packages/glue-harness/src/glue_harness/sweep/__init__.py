"""Many runs from one specification, each in a process of its own, resumable."""

from __future__ import annotations

import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from finetune_common.errors import ConfigurationError, check_number
from glue_harness.config import RunConfig
from glue_harness.console import console_for_reading
from glue_harness.records import write_whole
from glue_harness.sweep.spec import PlannedRun, read_spec

__all__ = ["sweep"]

ERROR = "error.txt"


def _work(config: RunConfig, jobs: int) -> str | None:
    """Do one run; return what went wrong, which is also written into the run's folder."""
    import torch

    from glue_harness.training import run

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    error_file = Path(config.output_dir) / ERROR
    try:
        run(config)
    except Exception as error:
        said = " ".join(str(error).split())
        error_file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(error_file, f"{said}\n\n{traceback.format_exc()}")
        return said
    error_file.unlink(missing_ok=True)
    return None


def sweep(spec: Path, output_dir: Path, jobs: int, dry_run: bool) -> None:
    """Do the runs of a specification that are not done yet.

    Every run has a process of its own, started from one that has imported everything; finished runs are left
    alone and interrupted ones continue. A failing run leaves `error.txt` in its folder and does not stop the
    others; it is tried again by the next sweep.

    Args:
        spec: The specification's file.
        output_dir: Holds a folder a run.
        jobs: Runs at a time, each with its share of the cores.
        dry_run: Only print what would be run.

    Raises:
        ConfigurationError: Something in the specification, or, after the others are done, runs that failed.
    """
    check_number("jobs", jobs, at_least=1)
    console = console_for_reading()
    planned = read_spec(spec, output_dir)
    left = [run for run in planned if not (output_dir / run.name / "result.json").exists()]
    console.print(f"{len(planned)} runs, {len(planned) - len(left)} of them finished")
    if dry_run:
        for run in left:
            console.print(f"  {run.name}", soft_wrap=True)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload(["glue_harness.training"])
    failed: list[PlannedRun] = []
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(_work, run.config, jobs): run for run in left}
        for number, future in enumerate(as_completed(futures), start=1):
            run, error = futures[future], future.result()
            console.print(f"{number}/{len(left)} {run.name}: {error or 'done'}", soft_wrap=True)
            if error:
                failed.append(run)
    if failed:
        raise ConfigurationError(
            f"{len(failed)} of {len(left)} runs failed, the first is {output_dir / failed[0].name}: "
            f"its {ERROR} says why; the same command tries again"
        )
