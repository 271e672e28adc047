"""Seconds of a training step of each setting of a sweep, side by side in one process.

Every setting makes a step in turn, so that all meet the machine's faster and slower moments: two rounds that
are not counted, then those whose median is taken. Rows are made up and of full length.

    python benchmarks/combined/time.py --spec SWEEP.yaml --output-dir DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from glue_harness.config import SLOTS, RunConfig
from glue_harness.hardware import hardware, versions
from glue_harness.records import write_report
from glue_harness.steps import Steps
from glue_harness.sweep.spec import read_spec

ROUNDS, WARM_UP = 15, 2


def measure(configs: Sequence[RunConfig], device: str) -> list[dict[str, Any]]:
    """Return each setting as results name it, with the median seconds of a step and those of all rounds."""
    all_steps = [Steps(config, device) for config in configs]
    for steps in all_steps:
        steps.prepare_optimizer()
    rounds = [[steps.timed(number)[1] for steps in all_steps] for number in range(1, WARM_UP + ROUNDS + 1)]
    rows = []
    for config, own in zip(configs, zip(*rounds[WARM_UP:], strict=True), strict=True):
        identity = config.identity()
        rows.append(
            {
                "task": config.task,
                "slots": {slot: identity[slot] for slot in SLOTS if slot != "monitor"},
                "rows": config.batch_size * config.accumulate,
                "tokens": config.max_length,
                "seconds": {"step": median(own), "all": own},
            }
        )
    return rows


def table(report: dict[str, Any]) -> str:
    """Return the markdown table."""
    lines = ["| task | methods | tokens a row | ms a step |", "| --- | --- | ---: | ---: |"]
    for row in report["rows"]:
        chosen = [*row["slots"].values()]
        names = [one["name"] for slot in chosen for one in (slot if isinstance(slot, list) else [slot])]
        shown = ", ".join(name for name in names if name not in ("full", "none"))
        lines.append(f"| {row['task']} | {shown} | {row['tokens']} | {1000 * row['seconds']['step']:,.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--spec", type=Path, required=True, help="a sweep; of each setting one seed is timed")
    parser.add_argument("--output-dir", type=Path, required=True, help="receives result.json and table.md")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    planned = read_spec(options.spec, options.output_dir)
    report = {
        "rows": measure([run.config for run in planned], device),
        "hardware": hardware(torch.device(device)),
        "versions": versions(),
    }
    print(table(report), end="")
    write_report(options.output_dir, report, table(report))


if __name__ == "__main__":
    main()
