"""A sweep whose program and workers are killed with kill -9, against the same sweep left alone.

After a quarter of the runs a worker is killed, after a half the program, after three quarters the program and
all workers at once; each time the same command goes on. What is compared are the results: each run once, no
finished one done again, every number equal to that of the sweep never killed. Needs /proc.

    python benchmarks/speed/sweep_resilience.py --output benchmarks/speed/results/sweep_resilience.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import write

from glue_harness.hardware import hardware, versions

BASE = {
    "task": "demo-similarity",
    "model": "demo",
    "max_steps": 8,
    "batch_size": 8,
    "max_length": 16,
    "log_every": 1,
    "save_every": 2,
}
COMPARED = ("metrics", "history", "steps", "hash")


def sweep(spec: Path, folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start the program."""
    command = [sys.executable, "-m", "glue_harness", "sweep", str(spec), "--output-dir", str(folder)]
    return subprocess.Popen([*command, "--jobs", str(jobs)], stdout=subprocess.DEVNULL)


def finished(folder: Path) -> dict[str, int]:
    """Return the finished runs, each with the time at which it was."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def begun(folder: Path) -> set[str]:
    """Return the runs that have done something and are not finished."""
    return {path.parent.name for path in folder.glob("*/config.yaml")} - set(finished(folder))


def workers(program: int) -> list[int]:
    """Return the processes whose parent's parent is the program: the fork server is between them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return [process for process, parent in parents.items() if parents.get(parent) == program]


def wait_for(folder: Path, number: int, program: subprocess.Popen[bytes]) -> None:
    """Wait until so many runs are finished."""
    while len(finished(folder)) < number:
        if program.poll() is not None:
            raise SystemExit("the sweep ended before it was killed: use more runs")
        time.sleep(0.02)


def killed(spec: Path, folder: Path, runs: int, jobs: int) -> list[dict[str, Any]]:
    """Run the sweep to its end through three kills; returns what each met."""
    kills = []
    program = sweep(spec, folder, jobs)
    for number, what in enumerate(("a worker", "the program", "the program and all workers"), start=1):
        wait_for(folder, runs * number // 4, program)
        victims = workers(program.pid)
        chosen = {"a worker": victims[:1], "the program": []}.get(what, victims)
        if what != "a worker":
            program.kill()
        for process in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if what != "a worker":
            program.wait()
            while any(Path(f"/proc/{process}").exists() for process in victims):
                time.sleep(0.02)
        kills.append({"killed": what, "finished_before": finished(folder), "in_flight": len(begun(folder))})
        if what != "a worker":
            program = sweep(spec, folder, jobs)
    if program.wait():
        raise SystemExit("the sweep failed")
    return kills


def numbers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return of each run what must not depend on its interruptions."""
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    return {name: {key: result[key] for key in COMPARED} for name, result in results.items()}


def logged_twice(folder: Path) -> int:
    """Return how many runs logged a step more than once."""
    steps = [
        [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in folder.glob("*/metrics.jsonl")
    ]
    return sum(sorted(set(logged)) != logged for logged in steps)


def main() -> None:
    """Run both sweeps, compare, print a table, and write the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=60, help="runs of the sweep (60)")
    parser.add_argument("--jobs", type=int, default=2, help="workers (2)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        spec, whole, cut = (Path(place) / name for name in ("sweep.yaml", "whole", "cut"))
        spec.write_text(yaml.safe_dump({"base": BASE, "grid": {"seed": list(range(options.runs))}}))
        if sweep(spec, whole, options.jobs).wait():
            raise SystemExit("the sweep failed")
        kills = killed(spec, cut, options.runs, options.jobs)
        last = finished(cut)
        redone = sum(last[name] != when for kill in kills for name, when in kill["finished_before"].items())
        report = {
            "settings": {**BASE, "runs": options.runs, "jobs": options.jobs},
            "kills": [kill | {"finished_before": len(kill["finished_before"])} for kill in kills],
            "results": len(last),
            "finished_runs_done_again": redone,
            "runs_with_a_step_logged_twice": logged_twice(cut),
            "runs_with_other_numbers": sum(
                numbers(cut)[name] != expected for name, expected in numbers(whole).items()
            ),
            "versions": versions(),
            "hardware": hardware(torch.device("cpu")),
        }
    write(report, table(report), options.output)


def table(report: dict[str, Any]) -> str:
    """Return the markdown of a report."""
    lines = ["| killed with kill -9 | finished before | runs in flight |", "| --- | --- | --- |"]
    lines += [
        f"| {kill['killed']} | {kill['finished_before']} | {kill['in_flight']} |" for kill in report["kills"]
    ]
    settings = report["settings"]
    return (
        "\n".join(lines)
        + f"\n\nA sweep of {settings['runs']} runs with {settings['jobs']} workers. "
        + f"Results: {report['results']}; "
        + f"finished runs done again: {report['finished_runs_done_again']}; runs with a step logged twice: "
        + f"{report['runs_with_a_step_logged_twice']}; runs with numbers other than in a sweep never killed: "
        + f"{report['runs_with_other_numbers']}.\n"
    )


if __name__ == "__main__":
    main()
