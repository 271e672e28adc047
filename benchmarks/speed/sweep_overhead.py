"""Seconds of a sweep against those of its runs: what starting, claiming and looking after them costs.

The overhead is the sweep's time, from the command to its end, over the sum of its runs' own times divided by
the number of workers. A run's own time is that of its parts in `result.json`: data, steps and evaluation.
Imports are paid once, before the first run begins: the more runs, the less they weigh.

    python benchmarks/speed/sweep_overhead.py --output benchmarks/speed/results/sweep_overhead.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from measuring import write

from glue_harness.hardware import hardware, versions


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Run the sweep once; returns its seconds and those of its runs."""
    base = {
        "task": "demo-similarity",
        "model": "demo",
        "batch_size": 16,
        "max_steps": options.steps,
        "eval_every": options.steps,
        "save_every": options.steps,
    }
    spec, folder = place / "sweep.yaml", place / "runs"
    spec.write_text(yaml.safe_dump({"base": base, "grid": {"seed": list(range(options.runs))}}))
    command = [sys.executable, "-m", "glue_harness", "sweep", str(spec), "--output-dir", str(folder)]
    began = time.time()
    subprocess.run([*command, "--jobs", str(options.jobs)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.time() - began
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    first = min(path.stat().st_mtime for path in folder.glob("*/config.yaml"))
    run_seconds = [sum(result["seconds"].values()) for result in results]
    return {
        "settings": {**base, "runs": options.runs, "jobs": options.jobs},
        "sweep_seconds": seconds,
        "start_seconds": first - began,
        "run_seconds": run_seconds,
        "overhead": seconds / (sum(run_seconds) / options.jobs),
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }


def table(report: dict[str, Any]) -> str:
    """Return the markdown of a report."""
    settings, run_seconds = report["settings"], report["run_seconds"]
    return (
        "| runs | workers | a run's own time | first begins | sweep | sum of runs / workers | overhead |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
        f"| {settings['runs']} | {settings['jobs']} | {mean(run_seconds):.1f} s "
        f"| {report['start_seconds']:.1f} s | {report['sweep_seconds']:.1f} s | "
        f"{sum(run_seconds) / settings['jobs']:.1f} s | {report['overhead']:.3f}x |\n"
    )


def main() -> None:
    """Measure, print a table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40, help="runs of the sweep (40)")
    parser.add_argument("--steps", type=int, default=740, help="steps of a run (740)")
    parser.add_argument("--jobs", type=int, default=2, help="workers (2)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        report = measure(options, Path(place))
    write(report, table(report), options.output)


if __name__ == "__main__":
    main()
