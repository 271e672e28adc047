"""What the scripts in this folder share: a stopwatch, turns, the processor's name, a report's files."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glue_harness.run.records import write_whole

__all__ = ["in_turns", "processor", "timed", "write"]


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turns(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each way, one number a round; a first round is not counted.

    Ways take turns, in another order each round, so that a slow minute of the machine hits all.

    Args:
        ways: Name → what does it once and returns its seconds.
        rounds: How often each is timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(ways), len(ways)):
            taken = ways[name]()
            if number:
                seconds[name].append(taken)
    return seconds


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
