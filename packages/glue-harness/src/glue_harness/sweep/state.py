"""The state of a run, read from its files."""

from __future__ import annotations

import json
from pathlib import Path

from glue_harness.sweep.spec import PlannedRun

__all__ = ["ERROR", "FAILED", "FINISHED", "WAITING", "reason_of", "seconds_of", "state_of"]

ERROR = "error.txt"
FINISHED, FAILED, WAITING = "finished", "failed", "waiting"


def state_of(run: PlannedRun) -> str:
    """Return whether a run is finished, has failed, or neither."""
    folder = Path(run.config.output_dir)
    if (folder / "result.json").exists():
        return FINISHED
    return FAILED if (folder / ERROR).exists() else WAITING


def reason_of(run: PlannedRun) -> str:
    """Return the first line of a failed run's error."""
    return (Path(run.config.output_dir) / ERROR).read_text(encoding="utf-8").partition("\n")[0]


def seconds_of(run: PlannedRun) -> float:
    """Return the seconds that the parts of a finished run took."""
    result = json.loads((Path(run.config.output_dir) / "result.json").read_text(encoding="utf-8"))
    return sum(result["seconds"].values())
