"""Seconds and memory of a report over many runs, on made-up results of the usual size.

    python benchmarks/speed/report.py --runs 10000 --output speed.json

The runs are 11 tasks × 3 optimizers × learning rates × 3 seeds with three evaluations each. Writing them is
not counted. The report runs in a process of its own: reading, statistics against a baseline, tables, charts
and the page.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from finetune_common.tasks import get_task

TASKS = (
    "cola",
    "mrpc",
    "qnli",
    "rte",
    "sst2",
    "stsb",
    "wnli",
    "demo-entailment",
    "demo-similarity",
    "mnli",
    "qqp",
)
OPTIMIZERS = ("adamw", "sage-adamw", "sgd")
SEEDS = (41, 42, 43)


def made_up(task: str, optimizer: str, rate: float, seed: int, score: float) -> dict[str, Any]:
    """Return what `result.json` of one run holds."""
    described = get_task(task)
    history = [
        {
            "step": 100 * epoch,
            "epoch": float(epoch),
            "metrics": dict.fromkeys(described.metrics, score * (0.7 + 0.1 * epoch)),
        }
        for epoch in (1, 2, 3)
    ]
    settings = {
        "task": task,
        "model": "bert-base-uncased",
        "seed": seed,
        "data_dir": None,
        "epochs": 3.0,
        "max_steps": None,
        "max_train_samples": None,
        "batch_size": 32,
        "accumulate": 1,
        "max_length": 128,
        "group_by_length": False,
        "schedule": "linear",
        "warmup": 0.0,
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "head_lr": None,
        "eval_every": None,
        "save_every": None,
        "log_every": 10,
        "precision": "fp32",
        "monitor": [],
    }
    return {
        "schema": 1,
        "task": task,
        "model": "bert-base-uncased",
        "seed": seed,
        "hash": "0123456789ab",
        "slots": {
            "adaptation": {"name": "full"},
            "activation": {"name": "none"},
            "gradient": [],
            "optimizer": {"name": optimizer, "lr": rate, "betas": [0.9, 0.999], "eps": 1e-6},
        },
        "settings": settings,
        "primary": described.primary,
        "metrics": {"last": history[-1]["metrics"], "best": history[-1]["metrics"]},
        "history": history,
        "steps": 300,
        "examples_per_second": 100.0,
        "seconds": dict.fromkeys(
            ("data", "forward", "backward", "gradient", "optimizer", "evaluation"), 10.0
        ),
        "peak_memory_bytes": 2**30,
        "saved_activation_bytes": 2**28,
        "parameters": {"trainable": 109_000_000, "total": 109_000_000},
        "versions": {"python": "3.11", "torch": "2.13.0", "transformers": "5.23.0", "glue-harness": "0.1.0"},
        "hardware": {"processor": "made up", "cores": 2, "threads": 2, "device": "cpu"},
    }


def write_results(folder: Path, runs: int) -> int:
    """Write so many results, a folder each; returns their number."""
    generator = np.random.default_rng(0)
    rates = -(-runs // (len(TASKS) * len(OPTIMIZERS) * len(SEEDS)))
    written = 0
    for number in range(rates):
        for task in TASKS:
            for place, optimizer in enumerate(OPTIMIZERS):
                for seed in SEEDS:
                    if written == runs:
                        return written
                    rate = float(f"{1e-6 * 1.05**number:.4g}")
                    score = 0.8 - 0.001 * place + float(generator.normal(0, 0.01))
                    target = folder / f"{task}-{optimizer}-lr{rate:g}-seed{seed}"
                    target.mkdir()
                    text = json.dumps(made_up(task, optimizer, rate, seed, score), indent=2)
                    (target / "result.json").write_text(text)
                    written += 1
    return written


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--runs", type=int, default=10_000, help="results to report (10000)")
    parser.add_argument("--keep", type=Path, help="keep results and report in this new folder")
    parser.add_argument("--output", type=Path, help="JSON file for the measurement")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        (folder / "runs").mkdir(parents=True)
        written = write_results(folder / "runs", options.runs)
        command = ["report", str(folder / "runs"), "--output-dir", str(folder / "report")]
        begin = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "glue_harness",
                *command,
                "--baseline",
                "optimizer=adamw,optimizer.lr=1e-6",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        measured = {
            "runs": written,
            "seconds": round(time.perf_counter() - begin, 2),
            "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            "page_mib": round((folder / "report" / "index.html").stat().st_size / 2**20, 2),
        }
    print(json.dumps(measured))
    if options.output:
        options.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
