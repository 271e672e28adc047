"""What the scripts in this folder share: a stopwatch, the processor's name, and the files of a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from glue_harness.records import write_whole

__all__ = ["processor", "timed", "write"]


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def processor() -> str:
    """Return the processor's name, "unknown" where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )


def write(report: dict[str, Any], table: str, output: Path | None) -> None:
    """Print a report's table and, where a JSON file is named, write it with the table (.md) beside it."""
    print(table)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(report, indent=1) + "\n")
        write_whole(output.with_suffix(".md"), table)
