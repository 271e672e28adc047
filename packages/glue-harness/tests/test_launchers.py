"""Sweeps by Ray tasks and by SLURM's job arrays: the same runs, done once, failures written down."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from finetune_common.errors import ConfigurationError
from glue_harness.sweep import sweep
from glue_harness.sweep.on_slurm import read_options
from glue_harness.sweep.spec import read_spec

BASE = {"task": "demo-similarity", "model": "demo", "max_steps": 2, "batch_size": 8}
GRID = {"optimizer": [{"name": "sgd", "lr": 0.1}, {"name": "sgd", "lr": 1e30}], "seed": [1, 2]}
ONLY_ONE_FAILS = [{"seed": 2, "optimizer": {"lr": 1e30}}]


def write(folder: Path, **spec) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "extra", "slurm"), [("ray", "ray", ""), ("slurm", "submitit", "cluster=local")]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_each_run_is_done_once_and_a_failing_one_stops_no_other(tmp_path, capsys, launcher, extra, slurm):
    pytest.importorskip(extra)
    spec, folder = write(tmp_path, base=BASE, grid=GRID, exclude=ONLY_ONE_FAILS), tmp_path / "runs"
    with pytest.raises(ConfigurationError, match=r"1 of 3 runs failed, the first is .*: its error\.txt"):
        sweep(spec, folder, 2, dry_run=False, launcher=launcher, slurm=slurm)
    planned = {run.name for run in read_spec(spec, folder)}
    done = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/result.json")}
    [failed] = folder.glob("*/error.txt")
    assert {*done, failed.parent.name} == planned
    assert len(done) == 2
    assert {result["steps"] for result in done.values()} == {2}
    assert "loss is" in failed.read_text()
    assert "3/3" in capsys.readouterr().out


@pytest.mark.slow
def test_an_interrupted_array_leaves_no_process_and_continues(tmp_path):
    """SIGINT while workers train: both end, runs keep their checkpoints, the same command finishes them."""
    pytest.importorskip("submitit")
    slow = {**BASE, "max_steps": 4000, "save_every": 1, "eval_every": 4000}
    spec, folder = write(tmp_path, base=slow, grid={"seed": [1, 2]}), tmp_path / "runs"
    command = [sys.executable, "-m", "glue_harness", "sweep", str(spec), "--output-dir", str(folder)]
    array = ["--launcher", "slurm", "--slurm", "cluster=local", "--jobs", "2"]
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen([*command, *array], stdout=log, stderr=log)
        end = time.monotonic() + 240
        while len({path.parent.parent for path in folder.glob("*/checkpoint/step-*")}) < 2:
            assert time.monotonic() < end
            assert launcher.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(60) == 130
    while workers(folder):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "the same command continues" in (tmp_path / "log").read_text()
    assert not list(folder.glob("*/error.txt"))


def workers(folder: Path) -> list[int]:
    """Processes that submitit started for a sweep: their command line names its folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if b"submitit" in line and os.fsencode(folder) in line:
            found.append(int(path.parent.name))
    return found


def test_options_of_slurm_have_submitits_names():
    assert read_options("partition=gpu, timeout_min=240,mem_gb=16,time=04:00:00") == {
        "slurm_partition": "gpu",
        "timeout_min": 240,
        "mem_gb": 16,
        "slurm_time": "04:00:00",
    }


@pytest.mark.parametrize(
    ("launcher", "slurm", "said"),
    [
        ("pbs", "", "launcher='pbs' is unknown: choose from local, ray, slurm"),
        ("ray", "partition=gpu", "--slurm partition=gpu: these options are for --launcher slurm"),
        ("slurm", "partition", "--slurm 'partition': give NAME=VALUE"),
        ("slurm", "cluster=local,partitio=gpu", "Unknown argument 'partitio'"),
        ("slurm", "cluster=moon", "named moon"),
    ],
)
def test_what_a_launcher_cannot_use_is_refused_in_one_line(tmp_path, launcher, slurm, said):
    pytest.importorskip("submitit")
    spec = write(tmp_path, base=BASE, grid={"seed": [1]})
    with pytest.raises(ConfigurationError) as error:
        sweep(spec, tmp_path / "runs", 1, dry_run=False, launcher=launcher, slurm=slurm)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("launcher", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_what_is_not_installed_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, launcher, module):
    monkeypatch.setattr("glue_harness.extras.find_spec", lambda name: None)
    spec = write(tmp_path, base=BASE, grid={"seed": [1]})
    with pytest.raises(
        ConfigurationError, match=rf"{module} is not installed: .*glue-harness\[{launcher}\]'"
    ):
        sweep(spec, tmp_path / "runs", 1, dry_run=False, launcher=launcher)
