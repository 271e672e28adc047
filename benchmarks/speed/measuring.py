"""What the scripts in this folder share: the device, a stopwatch, turns, a report's files."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_common.errors import ConfigurationError
from glue_harness.run.records import write_whole

__all__ = ["add_device", "begin", "in_turns", "peft_circumstances", "processor", "timed", "write"]


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where a script measures."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to measure (cpu)")


def begin(device: str) -> None:
    """Let all tensors be made on a device from now on; denormal numbers are zero on a CPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda: torch finds no CUDA device: use --device cpu")
    torch.set_default_device(device)
    torch.set_flush_denormal(True)


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call: of the host on a CPU, of the stream on a GPU, which is idle before."""
    if torch.get_default_device().type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


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


def peft_circumstances() -> dict[str, Any]:
    """Return the versions and the hardware that measurements beside peft are of."""
    import peft
    import transformers

    return {
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def write(report: dict[str, Any], table: str, output: Path | None) -> None:
    """Print a report's table and, where a JSON file is named, write it with the table (.md) beside it."""
    print(table)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(report, indent=1) + "\n")
        write_whole(output.with_suffix(".md"), table)
