"""A run that is killed and started again ends with the numbers of one that was not, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

SETTINGS: dict[str, Any] = {
    "task": "demo-similarity",
    "model": "demo",
    "max_train_samples": 92,
    "batch_size": 8,
    "accumulate": 2,
    "epochs": 2.5,
    "eval_every": 4,
    "save_every": 3,
    "log_every": 1,
    "schedule": "cosine",
    "warmup": 0.2,
    "weight_decay": 0.1,
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
}
"""Twelve batches of 8 (the last of 4) are six windows an epoch, 15 steps in all; dropout is on."""


def outcome(folder: Path) -> dict[str, Any]:
    """What has to be equal, bit for bit."""
    result = json.loads((folder / "result.json").read_text())
    (checkpoint,) = (folder / "checkpoint").iterdir()
    return {
        "metrics": result["metrics"],
        "history": result["history"],
        "steps": result["steps"],
        "weights": sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest(),
        "predictions": (folder / "predictions.tsv").read_text(),
        "logged": (folder / "metrics.jsonl").read_text(),
    }


class Stop(Exception):
    """Ends a run in the middle."""


METHODS = ("adamw", "adam", "adamax", "sgd", "asgd", "adagrad", "adadelta", "rmsprop", "radam", "nadam")
BY_PATH = ("torch.optim.Adafactor", "torch.optim.NAdam")


@pytest.mark.parametrize("optimizer", METHODS + BY_PATH)
def test_every_optimizer_continues_with_its_state(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, optimizer: str
) -> None:
    from glue_harness.run.loop import Training

    settings = SETTINGS | {"max_steps": 5, "save_every": 2, "eval_every": None, "optimizer": optimizer}
    train("whole", **settings)
    with monkeypatch.context() as patch:
        after, steps = Training._after_step, []

        def stop(self: Training, *rest: Any) -> None:
            steps.append(1)
            if len(steps) == 4:
                raise Stop
            after(self, *rest)

        patch.setattr(Training, "_after_step", stop)
        with pytest.raises(Stop):
            train("stopped", **settings)
    assert [path.name for path in (tmp_path / "stopped/checkpoint").iterdir()] == ["step-2"]
    train("stopped", **settings)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


def _files(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_finished_run_says_so_and_does_nothing(harness: Callable[..., Any], tmp_path: Path) -> None:
    line = [
        "run",
        "--task",
        "demo-entailment",
        "--model",
        "demo",
        "--output-dir",
        tmp_path / "run",
        "--max-steps",
        2,
    ]
    first = harness(*line)
    assert first.status == 0
    assert "this run is finished" not in first.out
    before = _files(tmp_path / "run")
    second = harness(*line)
    assert second.status == 0
    assert "this run is finished" in second.out
    assert "--overwrite" in second.out
    assert _files(tmp_path / "run") == before


def test_overwrite_starts_anew_with_the_same_or_other_settings(
    harness: Callable[..., Any], tmp_path: Path
) -> None:
    line = ["run", "--task", "demo-entailment", "--model", "demo", "--output-dir", tmp_path / "run"]
    assert harness(*line, "--max-steps", 3, "--log-every", 1).status == 0
    first, before = outcome(tmp_path / "run"), _files(tmp_path / "run")
    assert harness(*line, "--max-steps", 3, "--log-every", 1, "--overwrite").status == 0
    assert outcome(tmp_path / "run") == first
    assert all(changed > before[path] for path, changed in _files(tmp_path / "run").items())
    assert harness(*line, "--max-steps", 2, "--log-every", 1, "--overwrite").status == 0
    assert outcome(tmp_path / "run")["steps"] == 2
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


HOLDER = """
import sys, time
from glue_harness import parse_mapping
from glue_harness.run.records import RunFolder

settings = {"task": "demo-entailment", "model": "demo", "max_steps": 2}
with RunFolder(parse_mapping(settings | {"output_dir": sys.argv[1]})):
    print("holding", flush=True)
    time.sleep(600)
"""


def test_second_process_is_refused_until_the_first_is_killed(
    harness: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    line = ["run", "--task", "demo-entailment", "--model", "demo", "--output-dir", folder, "--max-steps", 2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        refused = harness(*line)
        os.kill(holder.pid, signal.SIGKILL)
    assert refused.status == 2
    assert "another process works on this run" in refused.err
    assert refused.err.count("\n") == 1
    assert (folder / ".lock").exists()
    assert harness(*line).status == 0
