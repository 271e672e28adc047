"""How processes share runs: each takes a run that is not finished, failed or taken."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from glue_harness.config.fields import RunConfig
from glue_harness.run.records import RunInUse, write_whole
from glue_harness.sweep.keeping import keep_models
from glue_harness.sweep.state import ERROR

__all__ = ["PAUSE", "attempted", "do_runs", "done", "write_error"]

PAUSE = 0.5
"""Seconds before a run that another process works on is checked again."""


def do_runs(
    configs: Sequence[RunConfig], begin: Callable[[int], None] = lambda number: None, keep: str = "best"
) -> None:
    """Do runs until each is finished or has failed, here or elsewhere.

    Args:
        configs: The runs.
        begin: Called with a run's number before it starts.
        keep: Which runs keep their models.
    """
    open_runs = dict(enumerate(configs))
    while open_runs:
        for number, config in list(open_runs.items()):
            if not done(config):
                begin(number)
                if not attempted(config, keep):
                    continue
            del open_runs[number]
        if open_runs:
            time.sleep(PAUSE)


def done(config: RunConfig) -> bool:
    """Say whether a run is finished or has failed."""
    folder = Path(config.output_dir)
    return (folder / "result.json").exists() or (folder / ERROR).exists()


def attempted(config: RunConfig, keep: str = "best") -> bool:
    """Do a run, unless another process has it; a failure is written into its folder.

    `keep` says which files of a finished run stay (`glue_harness.sweep.keeping`).
    """
    from glue_harness.run.entry import run

    try:
        run(config, quiet=True)
        keep_models(Path(config.output_dir), keep)
    except RunInUse:
        return False
    except Exception as error:
        write_error(config, " ".join(str(error).split()) or type(error).__name__, traceback.format_exc())
    return True


def write_error(config: RunConfig, reason: str, details: str = "") -> None:
    """Write a failure into the run's folder."""
    write_whole(Path(config.output_dir) / ERROR, f"{reason}\n\n{details}")
