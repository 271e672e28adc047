"""Seconds and saved activations of a training step of each setting of a sweep, side by side in one process.

The settings of a task make a step in turn, so that all meet the machine's faster and slower moments: two
rounds that are not counted, then those whose median is taken. What automatic precision takes to measure its
widths is spread over the steps between two measurements. Rows are made up and of full length.

    python benchmarks/combined/time.py --spec SWEEP.yaml --output-dir DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch

from glue_harness.config.fields import SLOTS, RunConfig
from glue_harness.cost.steps import Steps
from glue_harness.hardware import hardware, versions
from glue_harness.report.aggregate import methods_in_words
from glue_harness.run.records import write_report
from glue_harness.sweep.spec import read_spec

ROUNDS, WARM_UP = 15, 2


def seconds_of(steps: Steps, seconds: Sequence[float]) -> dict[str, Any]:
    """Return the seconds of a step in the long run, of a measurement of precision, and of all rounds."""
    usual = median(seconds)
    options = steps.methods.activation.options
    interval = getattr(options, "interval", None)
    if interval is None:
        return {"step": usual, "all": seconds}
    measuring = max(0.0, median(steps.timed(options.warmup + 1)[1] for _ in range(3)) - usual)
    return {"step": usual + measuring / interval, "measuring": measuring, "all": seconds}


def measure(configs: Sequence[RunConfig], device: str) -> list[dict[str, Any]]:
    """Return each setting as results name it, with the seconds of its step and the bytes it saves."""
    all_steps = [Steps(config, device) for config in configs]
    for steps in all_steps:
        steps.prepare_optimizer()
    rounds = [[steps.timed(number)[1] for steps in all_steps] for number in range(1, WARM_UP + ROUNDS + 1)]
    rows = []
    for config, steps, seconds in zip(configs, all_steps, zip(*rounds[WARM_UP:], strict=True), strict=True):
        identity = config.identity()
        rows.append(
            {
                "task": config.task,
                "slots": {slot: identity[slot] for slot in SLOTS if slot != "monitor"},
                "rows": config.batch_size * config.accumulate,
                "tokens": config.max_length,
                "seconds": seconds_of(steps, seconds),
                "saved_bytes": steps.metered_forward()[1],
            }
        )
    return rows


def table(report: dict[str, Any]) -> str:
    """Return the markdown table."""
    lines = [
        "| task | methods | rows a step | tokens a row | ms a step | MiB saved |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report["rows"]:
        size = f"{row['rows']} | {row['tokens']}"
        costs = f"{1000 * row['seconds']['step']:,.0f} | {row['saved_bytes'] / 2**20:,.1f}"
        lines.append(f"| {row['task']} | {methods_in_words(row['slots'])} | {size} | {costs} |")
    machine, rounds = report["hardware"], len(report["rows"][0]["seconds"]["all"])
    circumstances = (
        f"medians of {rounds} rounds in one process; {machine['processor']}, {machine['threads']} threads"
    )
    return "\n".join(lines) + f"\n\nMiB saved: by the forward pass of a micro-batch. {circumstances}.\n"


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--spec", type=Path, required=True, help="a sweep; of each setting one seed is timed")
    parser.add_argument("--output-dir", type=Path, required=True, help="receives result.json and table.md")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    configs = [run.config for run in read_spec(options.spec, options.output_dir)]
    tasks = groupby(configs, key=lambda config: config.task)
    report = {
        "rows": [row for _, group in tasks for row in measure(list(group), device)],
        "hardware": hardware(torch.device(device)),
        "versions": versions(),
    }
    write_report(options.output_dir, report, table(report))


if __name__ == "__main__":
    main()
