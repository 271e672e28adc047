"""A run that is killed and started again ends with the numbers of one that was not, bit for bit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from random import Random
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

DRIVER = '''
import functools, json, os, random, signal, sys, time

import torch
from finetune_common.demo import demo_tokenizer, rows
from finetune_common.metrics import compute_metrics
from finetune_common.tasks import get_task
from glue_harness import parse_mapping, run
from glue_harness.run import checkpoint, loop, models, records

torch.set_num_threads(1)
settings, moments = json.loads(sys.argv[1]), json.loads(sys.argv[2])

# What every start would repeat is done once, before the processes part.
rows.demo_rows = functools.cache(rows.demo_rows)
loop.Data.load(parse_mapping(settings), demo_tokenizer())
models.load_model("demo", get_task(settings["task"]), demo_tokenizer())
compute_metrics(settings["task"], [1.0, 2.0], [1.0, 2.0])


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, count=1):
    """Die at the `count`-th call of a function, before it does anything."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        return die() if len(calls) == count else original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_a_state(owner):
    """Die with the first half of `state.pt` on disk."""
    original = torch.save

    def wrapped(state, path):
        original(state, path)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size // 2)
        die()

    owner.save = wrapped


def half_a_line():
    """Die with half a line in `metrics.jsonl`."""

    def wrapped(self, entry):
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry)[:20])
        die()

    records.RunFolder.log = wrapped


for moment in moments:
    child = os.fork()
    if child == 0:
        kind, number = moment
        if kind == "step":
            before(loop.Training, "_train_step", number)
        elif kind == "after step":
            before(loop.Training, "_after_step", number)
        elif kind == "weights":
            before(checkpoint, "save_model", number)
        elif kind == "state":
            before(torch, "save", number)
        elif kind == "half a state":
            half_a_state(torch)
        elif kind == "sync":
            before(checkpoint, "_sync", number)
        elif kind == "removal":
            before(checkpoint.shutil, "rmtree", number)
        elif kind == "half a line":
            half_a_line()
        elif kind == "evaluation":
            before(loop.Training, "_evaluate", number)
        elif kind in ("predictions", "seconds"):  # a run that is done before its time dies here
            before(records.RunFolder, "write_predictions")
        elif kind == "result":
            before(records.RunFolder, "write_result")
        run(parse_mapping(settings))
        os._exit(0)
    if moment[0] == "seconds":
        time.sleep(moment[1])
        os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1], flush=True)
'''


def drive(folder: Path, moments: list[tuple[str, float | None]]) -> list[int]:
    """Start the run in `folder` once for every moment, dying there; return the wait statuses."""
    settings = SETTINGS | {"output_dir": str(folder)}
    argv = [sys.executable, "-c", DRIVER, json.dumps(settings), json.dumps(moments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(status) for status in done.stdout.split()]


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


@pytest.mark.slow
def test_killed_at_ten_random_moments_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """`kill -9` at random steps, within every phase of a checkpoint's writing, and after random times."""
    random = Random(2024)
    inside: list[tuple[str, float | None]] = [
        ("weights", 1),
        ("half a state", None),
        ("sync", random.randint(1, 4)),
        ("state", random.randint(1, 2)),
        ("removal", random.randint(2, 3)),
    ]
    elsewhere: list[tuple[str, float | None]] = [
        ("step", random.randint(1, 4)),
        ("after step", random.randint(1, 4)),
        ("half a line", None),
        ("evaluation", 1),
    ]
    moments = inside + elsewhere
    random.shuffle(moments)
    moments.append(("seconds", random.uniform(0.05, 0.5)))
    statuses = drive(
        tmp_path / "killed", [*moments, ("predictions", None), ("result", None), ("never", None)]
    )
    assert statuses == [signal.SIGKILL] * 12 + [0]
    assert drive(tmp_path / "whole", [("never", None)]) == [0]
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert outcome(tmp_path / "whole")["steps"] == 15
    left = {path.name for path in (tmp_path / "killed/checkpoint").iterdir()}
    assert left == {"step-15"}


class Stop(Exception):
    """Ends a run in the middle."""


METHODS = ("adamw", "adam", "adamax", "sgd", "asgd", "adagrad", "adadelta", "rmsprop", "radam", "nadam")


@pytest.mark.parametrize("optimizer", METHODS)
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
