"""A run with a method in every slot, killed or asked to stop again and again, ends as one left alone."""

import json
import re
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import pytest

SETTINGS: dict[str, Any] = {
    "task": "demo-similarity",
    "model": "demo",
    "model_config": {"num_hidden_layers": 1},
    "max_train_samples": 46,
    "batch_size": 4,
    "accumulate": 2,
    "epochs": 6,
    "eval_every": 4,
    "save_every": 3,
    "log_every": 1,
    "max_eval_samples": 37,
    "schedule": "cosine",
    "warmup": 0.2,
    "weight_decay": 0.1,
    "load_best": True,
    "adaptation": {"name": "lora", "rank": 4},
    "activation": {"name": "compress", "level": "L1"},
    "gradient": [{"name": "agni", "eta": 1.0}],
    "optimizer": {"name": "sage-adamw", "lr": 1e-2},
    "monitor": ["gradient-noise"],
}
"""Twelve batches of 4 (the last of 2) are six windows an epoch, 36 steps in all; dropout is on."""

Moment = tuple[str, str, float]
"""A signal, where it comes, and at which time that the run passes there."""

DRIVER = '''
import functools, json, os, signal, sys, time, warnings

import torch
from finetune_common import metrics
from finetune_common.demo import demo_tokenizer, rows
from glue_harness import files, parse_mapping, run
from glue_harness.run import assembly, checkpoint, entry, evaluation, loop, plan, records
from glue_harness.stopping import Stopped

warnings.simplefilter("ignore")
torch.set_num_threads(1)
settings, moments = json.loads(sys.argv[1]), json.loads(sys.argv[2])

# What every start would repeat is done once, before the processes part.
rows.demo_rows = functools.cache(rows.demo_rows)
read = plan.Data.load(parse_mapping(settings), demo_tokenizer())
assembly.create(parse_mapping(settings), task=read.task, tokenizer=demo_tokenizer()).prepare(2)
metrics.compute_metrics(settings["task"], [1.0, 2.0], [1.0, 2.0])

PLACES = {
    "start": (entry, "create"),
    "step": (loop.Training, "_train_step"),
    "after step": (loop.Training, "_after_step"),
    "evaluation": (loop.Training, "_evaluate"),
    "batch of an evaluation": (plan.Data, "loader"),
    "scores": (evaluation, "compute_metrics"),
    "weights": (checkpoint, "save_model"),
    "state": (torch, "save"),
    "sync": (files, "sync"),
    "digest": (checkpoint, "write_digests"),
    "removal": (checkpoint.shutil, "rmtree"),
    "best": (checkpoint, "save_best"),
    "predictions": (records.RunFolder, "write_predictions"),
    "result": (records.RunFolder, "write_result"),
}


def signalled(number, owner, name, count):
    """Have the signal come at the `count`-th call of a function, before it does anything."""
    original, calls = getattr(owner, name), []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def half_a_state(number):
    """Have it come with the first half of `state.pt` on disk."""
    original = torch.save

    def wrapped(state, file):
        original(state, file)
        size = file.tell()
        file.truncate(size // 2)
        file.flush()
        os.kill(os.getpid(), number)

    torch.save = wrapped


def half_a_line(number):
    """Have it come with half a line in `metrics.jsonl`."""

    def wrapped(self, entry):
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry)[:20])
            file.flush()
            os.kill(os.getpid(), number)

    records.RunFolder.log = wrapped


for name, place, count in moments:
    number = getattr(signal, name)
    child = os.fork()
    if child == 0:
        plan.Data.load = lambda *_: read
        if place == "half a state":
            half_a_state(number)
        elif place == "half a line":
            half_a_line(number)
        elif place in PLACES:
            signalled(number, *PLACES[place], count)
        try:
            run(parse_mapping(settings))
        except Stopped as stopped:
            os._exit(stopped.status)
        os._exit(0)
    if place == "seconds":
        time.sleep(count)
        os.kill(child, number)
    print("ended:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''


def drive(folder: Path, moments: list[Moment]) -> list[int]:
    """Start the run in `folder` once for every moment, and once more to its end; return the exit codes."""
    settings = SETTINGS | {"output_dir": str(folder)}
    last: Moment = ("SIGTERM", "never", 0)
    argv = [sys.executable, "-c", DRIVER, json.dumps(settings), json.dumps([*moments, last])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [int(code) for code in re.findall(r"^ended: (-?\d+)$", done.stdout, re.MULTILINE)]


def outcome(folder: Path) -> dict[str, Any]:
    """What has to be equal, bit for bit."""
    result = json.loads((folder / "result.json").read_text())
    (checkpoint,) = (folder / "checkpoint").iterdir()
    return {
        "name": checkpoint.name,
        "metrics": result["metrics"],
        "history": result["history"],
        "steps": result["steps"],
        "weights": sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest(),
        "predictions": (folder / "predictions.tsv").read_text(),
        "logged": (folder / "metrics.jsonl").read_text(),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert drive(folder, []) == [0]
    found = outcome(folder)
    assert found["name"] == "step-36"
    assert len(found["history"]) == 9
    assert "noise_to_gradient" in found["logged"]
    return found


@pytest.mark.slow
def test_fifteen_times_killed(whole: dict[str, Any], tmp_path: Path) -> None:
    """`kill -9` at random steps, within every phase of a checkpoint's writing, and after random times."""
    random = Random(2024)
    places = {
        "step": 4,
        "after step": 4,
        "half a line": 1,
        "evaluation": 1,
        "scores": 1,
        "weights": 1,
        "half a state": 1,
        "state": 2,
        "sync": 9,
        "digest": 2,
        "best": 1,
        "removal": 2,
    }
    moments: list[Moment] = [("SIGKILL", place, random.randint(1, most)) for place, most in places.items()]
    random.shuffle(moments)
    moments += [("SIGKILL", "seconds", random.uniform(0.02, 0.6))]
    moments += [("SIGKILL", "predictions", 1), ("SIGKILL", "result", 1)]
    assert len(moments) == 15
    assert drive(tmp_path / "killed", moments) == [-signal.SIGKILL] * 15 + [0]
    assert outcome(tmp_path / "killed") == whole


@pytest.mark.slow
def test_ten_times_asked_to_stop(whole: dict[str, Any], tmp_path: Path) -> None:
    """SIGTERM at random moments: the step in hand is saved, also before and within its evaluation."""
    random = Random(2025)
    places = {
        "start": 1,
        "step": 5,
        "after step": 3,
        "evaluation": 1,
        "batch of an evaluation": 2,
        "scores": 1,
        "weights": 1,
        "state": 1,
        "sync": 9,
        "best": 1,
    }
    moments: list[Moment] = [("SIGTERM", place, random.randint(1, most)) for place, most in places.items()]
    random.shuffle(moments)
    assert len(moments) == 10
    assert drive(tmp_path / "asked", moments) == [128 + signal.SIGTERM] * 10 + [0]
    assert outcome(tmp_path / "asked") == whole
