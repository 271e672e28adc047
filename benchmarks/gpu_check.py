"""Whether all that waits for a GPU works on one: tests, speed, memory foretold and measured, and a whole run.

    python benchmarks/gpu_check.py --output-dir runs/gpu                    # at most eight minutes on one GPU
    python benchmarks/gpu_check.py --output-dir runs/gpu --device cpu --quick

Needs the packages and pytest, no network and no nox. Each part has a time limit and runs in a process of its
own, so that a failure does not end the rest. `gpu_check.json` is written after each part, `gpu_check.md` at
the end; the exit status is 1 where a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent

MOST = 480
"""Seconds for all parts together."""
TOLERANCE = 0.10
"""By how much a measured peak may differ from the one foretold."""


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        name: What it is called.
        seconds: Its time limit.
        command: What runs, in the root of the checkout.
        read: Its output folder → what is told of it; raises where something is wrong.
    """

    name: str
    seconds: int
    command: list[str]
    read: Callable[[], dict[str, Any]] = dict


def parts(device: str, quick: bool, folder: Path) -> Iterator[Part]:
    """Yield the parts, in the order in which they run."""
    python = sys.executable
    yield Part(
        "device", 60, [python, "-c", DESCRIBE, device, str(folder / "device.json")], _json(folder, "device")
    )
    tests = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--device",
        device,
        "tests/test_on_devices.py",
    ]
    yield Part("tests", 150, tests + (["-k", "masks"] if quick else []))
    yield from _speed(device, quick, folder)
    for activation in ("none", "compress"):
        name = f"memory {activation}"
        words = [device, "quick" if quick else "full", activation, str(folder / f"{name}.json")]
        yield Part(name, 90, [python, __file__, "--memory", *words], _memory(folder, name, device))
    run = [python, "-m", "glue_harness", "run", "--task", "demo-similarity", "--model", "demo"]
    run += ["--device", device, "--adaptation", "lora", "--activation", "compress", "--gradient", "agni"]
    run += ["--optimizer", "sage-adamw", "--accumulate", "2", "--batch-size", "8"]
    run += ["--max-steps", "3" if quick else "40", "--max-train-samples", "128", "--overwrite"]
    run += ["--output-dir", str(folder / "run")]
    yield Part("a run with a method in every slot", 120, run, _run(folder / "run"))


def _speed(device: str, quick: bool, folder: Path) -> Iterator[Part]:
    tiny = "--layers 1 --batch-size 2 --length 16 --rounds 1 --elements 4096 --bits 4 --no-peaks --ways L1"
    scripts = {
        "training_step": ("--quick --models bert --ways plain L1" if quick else "--rounds 5", 200),
        "activations": (tiny if quick else "--layers 12 --rounds 3", 90),
        "optimizers": ("--no-compiling --repeats 5", 90),
        "gradient_noise": ("--rounds 1 --short-rounds 3", 90),
    }
    for script, (words, seconds) in scripts.items():
        if quick and script in ("optimizers", "gradient_noise"):
            continue  # of full size whatever is asked, gigabytes
        output = folder / f"{script}.json"
        command = [sys.executable, str(HERE / "speed" / f"{script}.py"), "--device", device, *words.split()]
        yield Part(f"speed {script}", seconds, [*command, "--output", str(output)], _json(folder, script))


DESCRIBE = """
import json, sys, torch
from glue_harness.hardware import hardware, versions
told = {**hardware(torch.device(sys.argv[1])), "versions": versions()}
if sys.argv[1] == "cuda":
    told["capability"] = torch.cuda.get_device_capability()
    told["free_bytes"], told["total_bytes"] = torch.cuda.mem_get_info()
open(sys.argv[2], "w").write(json.dumps(told))
"""


def memory(device: str, size: str, activation: str, output: str) -> None:
    """Write what a step of a BERT takes, foretold and measured."""
    from glue_harness.config.parsing import parse_line
    from glue_harness.cost.footprint import measured_peak, predict
    from glue_harness.cost.steps import Steps

    line = ["--task", "sst2", "--output-dir", "-", "--activation", activation]
    if size == "quick":
        line += ["--model", "demo", "--batch-size", "64", "--max-length", "32"]
    else:
        line += ["--model", "bert-large-cased", "--batch-size", "16"]
    config, _ = parse_line(line)
    predicted = predict(config, device, "sdpa")
    steps = Steps(config, device, "sdpa")
    for _ in range(2):  # the first one compiles
        steps.model.zero_grad()
        peak = measured_peak(steps.forward_backward, device)
    _, stored = steps.metered_forward()
    told = {
        "predicted_saved_bytes": predicted.activations,
        "saved_bytes": stored,
        "predicted_peak_bytes": predicted.peak - predicted.optimizer,
        "peak_bytes": steps.state_bytes()["parameters"] + peak,
    }
    Path(output).write_text(json.dumps(told), encoding="utf-8")


def _json(folder: Path, name: str) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        failed = [row for row in report.get("rows", ()) if "error" in row]
        return {"report": report, **({"rows_with_errors": len(failed)} if failed else {})}

    return read


def _memory(folder: Path, name: str, device: str) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        told = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        room = 32 * 2**20 if device == "cuda" else 0  # cuBLAS may have its work space from before
        apart = abs(told["peak_bytes"] - told["predicted_peak_bytes"]) - room
        if told["saved_bytes"] != told["predicted_saved_bytes"] or apart > TOLERANCE * told["peak_bytes"]:
            raise ValueError(f"foretold otherwise: {told}")
        return {"report": told}

    return read


def _run(folder: Path) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        keys = ("metrics", "steps", "examples_per_second", "peak_memory_bytes", "seconds")
        return {"report": {key: result[key] for key in keys}}

    return read


def check(part: Part, left: float = MOST) -> dict[str, Any]:
    """Run a part within its own limit and the time that is left; return how it ended, whatever happens."""
    limit = round(min(part.seconds, left))
    if limit < 1:
        return {"part": part.name, "status": "failed", "why": "no time was left", "seconds": 0.0}
    began = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    row: dict[str, Any] = {"part": part.name, "status": "passed"}
    try:
        done = subprocess.run(
            part.command,
            cwd=ROOT,
            env=environment,
            timeout=limit,
            capture_output=True,
            text=True,
            check=False,
        )
        row["output"] = (done.stdout + done.stderr)[-4000:]
        if done.returncode:
            row |= {"status": "failed", "why": f"exit status {done.returncode}"}
        else:
            row |= part.read()
    except subprocess.TimeoutExpired:
        row |= {"status": "failed", "why": f"not done after {limit} s"}
    except Exception as error:
        row |= {"status": "failed", "why": f"{type(error).__name__}: {error}"}
    return {**row, "seconds": round(time.perf_counter() - began, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the markdown table of the parts, and the tables that they printed."""
    lines = ["| part | | seconds | |", "| --- | --- | ---: | --- |"]
    for row in rows:
        why = row.get("why", "")
        if "rows_with_errors" in row:
            why = f"{row['rows_with_errors']} of its rows have errors"
        lines.append(f"| {row['part']} | {row['status']} | {row['seconds']} | {why} |")
    for row in rows:
        printed = [line for line in row.get("output", "").splitlines() if line.startswith("|")]
        if printed:
            lines += ["", f"## {row['part']}", "", *printed]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Check, print, write."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether the check itself runs")
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory(*options.memory)
        return 0
    if options.output_dir is None:
        parser.error("--output-dir is missing: name the folder that receives gpu_check.json and gpu_check.md")
    folder = options.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + MOST
    for part in parts(options.device, options.quick, folder):
        row = check(part, end - time.monotonic())
        rows.append(row)
        print(f"{row['part']:40}{row['status']:8}{row['seconds']:>8} s  {row.get('why', '')}", flush=True)
        report = {"device": options.device, "quick": options.quick, "parts": rows}
        (folder / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu_check.md").write_text(table(rows), encoding="utf-8")
    print(f"\n{table(rows)}")
    return int(any(row["status"] == "failed" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
