"""Sweeps: what a specification expands to, and that its runs are done once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from finetune_common.errors import ConfigurationError
from glue_harness import run as train
from glue_harness.sweep import sweep
from glue_harness.sweep.claiming import do_runs
from glue_harness.sweep.keeping import disk_needed, keep_models
from glue_harness.sweep.spec import read_keep, read_spec
from glue_harness.sweep.state import reason_of, state_of
from glue_harness.sweep.workers import Workers

BASE = {"task": "demo-similarity", "model": "demo", "max_steps": 2, "batch_size": 8}


def write(folder: Path, **spec) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_every_case_meets_every_point_of_the_grid(tmp_path):
    spec = write(
        tmp_path,
        base=BASE,
        grid={"seed": [1, 2, 3], "optimizer": ["adamw", {"name": "sgd", "lr": 0.1}]},
        cases=[{"epochs": 1}, {"epochs": 2}],
    )
    runs = read_spec(spec, tmp_path)
    assert len(runs) == 2 * 3 * 2
    assert {(r.config.seed, r.config.optimizer["name"], r.config.epochs) for r in runs} == {
        (seed, optimizer, epochs) for seed in (1, 2, 3) for optimizer in ("adamw", "sgd") for epochs in (1, 2)
    }
    assert all(r.config.optimizer["lr"] == 0.1 for r in runs if r.config.optimizer["name"] == "sgd")


def test_names_say_what_differs_and_end_in_the_hash(tmp_path):
    spec = write(tmp_path, base=BASE, grid={"optimizer": [{"name": "sgd", "lr": 0.1}], "seed": [7]})
    [run] = read_spec(spec, tmp_path)
    assert run.name == f"sgd-lr0.1-seed7-{run.config.hash[:8]}"
    assert Path(run.config.output_dir) == tmp_path / run.name


def test_a_changed_specification_finds_the_runs_that_are_there(tmp_path):
    """With a second value of an option that was the same for all, the others would be named anew."""
    before = read_spec(write(tmp_path, base=BASE, grid={"seed": [1, 2]}), tmp_path / "runs")
    for run in before:
        Path(run.config.output_dir).mkdir(parents=True)
    grid = {"seed": [1, 2], "task": ["demo-similarity", "demo-entailment"]}
    after = read_spec(write(tmp_path, base=BASE, grid=grid), tmp_path / "runs")
    assert len(after) == 4
    assert {run.config.output_dir for run in before} < {run.config.output_dir for run in after}


@pytest.mark.parametrize(
    ("exclusion", "left"),
    [
        ({"optimizer": "sgd"}, 2),
        ({"optimizer": "sgd", "seed": 1}, 3),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, 2),
        ({"optimizer": {"name": "sgd", "lr": 0.2}}, 4),
        ({"task": "demo-similarity", "seed": 2}, 2),
        ({"optimizer": {"lr": "1e-1"}}, 0),
        ({"optimizer.name": "sgd", "optimizer.lr": 0.1}, 2),
        ({"optimizer": {"momentum": 0.9}}, 2),
        ({"max-steps": BASE["max_steps"], "seed": "2"}, 2),
        ({"epochs": 3}, 0),
        ({"gradient": "annealed-noise"}, 4),
        ({"gradient": None}, 0),
        ({"gradient": "none", "optimizer": "adamw"}, 2),
    ],
)
def test_exclusions_leave_out_what_they_cover(tmp_path, exclusion, left):
    grid = {"optimizer": [{"name": "adamw", "lr": 0.1}, {"name": "sgd", "lr": 0.1}], "seed": [1, 2]}
    spec = write(tmp_path, base=BASE, grid=grid, exclude=[exclusion])
    if not left:
        with pytest.raises(ConfigurationError, match="nothing to run"):
            read_spec(spec, tmp_path)
    else:
        assert len(read_spec(spec, tmp_path)) == left


def test_an_exclusion_names_one_of_several_methods(tmp_path):
    grid = {"gradient": [["annealed-noise", "agni"], "annealed-noise", None, [{"name": "agni", "eta": 0.1}]]}
    for exclusion, left in (
        ({"gradient": "annealed-noise"}, 2),
        ({"gradient": {"name": "agni", "eta": 0.1}}, 3),
        ({"gradient": ["agni"]}, 3),
        ({"gradient": "none"}, 3),
    ):
        spec = write(tmp_path, base=BASE, grid=grid, exclude=[exclusion])
        assert len(read_spec(spec, tmp_path)) == left


def test_a_rule_sees_what_is_left_at_its_default(tmp_path):
    rule = {"if": {"optimizer.lr": 2.0e-5, "accumulate": 1}, "then": {"max_steps": 9}}
    base = {**BASE, "optimizer": "adamw"}
    spec = write(tmp_path, base=base, grid={"optimizer.lr": ["2e-5", 1.0e-3]}, where=[rule])
    assert [run.config.max_steps for run in read_spec(spec, tmp_path)] == [9, BASE["max_steps"]]


def test_a_point_that_is_named_twice_runs_once(tmp_path):
    spec = write(tmp_path, base=BASE, grid={"seed": [1, 1, 2]})
    assert len(read_spec(spec, tmp_path)) == 2


def test_variables_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_TEST_TASK", "demo-entailment")
    spec = write(tmp_path, base={**BASE, "task": "${SWEEP_TEST_TASK}"}, grid={"seed": [1]})
    assert read_spec(spec, tmp_path)[0].config.task == "demo-entailment"
    monkeypatch.delenv("SWEEP_TEST_TASK")
    with pytest.raises(ConfigurationError, match="variable SWEEP_TEST_TASK is not set"):
        read_spec(spec, tmp_path)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"bse": BASE}, "'bse' is unknown: did you mean 'base'"),
        ({"base": [1]}, "base=[1] has to be a mapping"),
        ({"base": BASE, "grid": {"seed": 3}}, "grid.seed=3 is no list"),
        ({"base": BASE, "grid": {"seed": [-1]}}, "seed=-1"),
        ({"base": BASE, "grid": {"optimizer": ["adamm"]}}, "did you mean"),
        ({"base": {**BASE, "overwrite": True}}, "overwrite only works in run: to repeat a run"),
        ({"base": BASE, "grid": {"offline": [True]}}, "set HF_HUB_OFFLINE=1"),
        ({"base": {**BASE, "epoch": 3}}, "'epoch' is unknown: did you mean 'epochs'"),
        ({"base": BASE, "exclude": [{"model": "demo"}]}, "nothing to run"),
        ({"base": BASE, "exclude": [{"sed": 1}]}, "exclude: key 'sed' is unknown: did you mean 'seed'"),
        ({"base": BASE, "exclude": [{"optimizer.ler": 1}]}, "did you mean 'optimizer.lr'"),
        ({"base": BASE, "exclude": ["seed"]}, "exclude: 'seed' is no mapping"),
        ({"base": BASE, "where": [{"if": {"sed": 1}, "then": {}}]}, "where.if: key 'sed' is unknown"),
        ({"base": BASE, "where": [{"if": None, "then": {}}]}, "is no rule: give 'if' and 'then'"),
        ({"base": BASE, "keep": ["best"]}, "keep=['best'] has to be a word"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(tmp_path, spec, said):
    with pytest.raises(ConfigurationError) as error:
        read_spec(write(tmp_path, **spec), tmp_path)
    assert said in str(error.value)
    assert str(tmp_path / "spec.yaml") in str(error.value)
    assert "\n" not in str(error.value)


class Dead:
    """A process that a lack of memory has ended."""

    exitcode = -9


def test_a_run_that_ends_its_processes_fails_and_the_others_go_on(tmp_path, monkeypatch):
    runs = read_spec(write(tmp_path, base=BASE, grid={"seed": [1, 2]}), tmp_path / "runs")
    workers = Workers([run.config for run in runs], 1)
    monkeypatch.setattr(workers, "_started", lambda number: Dead())
    workers._processes = [Dead()]
    begun = []
    for _ in range(4):
        assert [state_of(run) for run in runs] == ["waiting", "waiting"]
        do_runs_until_the_first_dies(runs, begun)
        workers._current_runs[0].value = begun[-1]
        workers.look_after()
    assert [state_of(run) for run in runs] == ["failed", "waiting"]
    assert "4 processes died, the last one with exit code -9" in reason_of(runs[0])
    do_runs_until_the_first_dies(runs, begun)
    assert begun == [0, 0, 0, 0, 1]


def do_runs_until_the_first_dies(runs, begun):
    def begin(number):
        begun.append(number)
        raise SystemExit

    with pytest.raises(SystemExit):
        do_runs([run.config for run in runs], begin)


def test_workers_that_die_before_they_begin_end_the_sweep(tmp_path, monkeypatch):
    [run] = read_spec(write(tmp_path, base=BASE), tmp_path / "runs")
    workers = Workers([run.config], 1)
    monkeypatch.setattr(workers, "_started", lambda number: Dead())
    workers._processes = [Dead()]
    for _ in range(3):
        workers.look_after()
    with pytest.raises(ConfigurationError, match="before they began a run"):
        workers.look_after()
    assert state_of(run) == "waiting"


@pytest.mark.slow
def test_runs_are_done_once_and_a_failing_one_does_not_stop_the_others(tmp_path, capfd):
    spec = write(
        tmp_path,
        base=BASE,
        grid={"optimizer": [{"name": "sgd", "lr": 1e30}, {"name": "sgd", "lr": 0.1}], "seed": [1]},
    )
    folder = tmp_path / "runs"
    with pytest.raises(ConfigurationError, match="1 of 2 runs failed"):
        sweep(spec, folder, jobs=1, dry_run=False)
    folders = [path for path in folder.iterdir() if path.is_dir()]
    failed, done = sorted(folders, key=lambda path: (path / "result.json").exists())
    assert "loss is" in (failed / "error.txt").read_text()
    before = (done / "result.json").read_bytes()
    assert json.loads(before)["steps"] == 2
    assert (done / "model/model.safetensors").exists()
    assert not (done / "checkpoint").exists()
    with pytest.raises(ConfigurationError, match="1 of 1 runs failed, 1 of them in an earlier sweep"):
        sweep(spec, folder, jobs=1, dry_run=False)
    error = (failed / "error.txt").stat().st_mtime_ns
    with pytest.raises(ConfigurationError, match="1 of 1 runs failed: read"):
        sweep(spec, folder, jobs=1, dry_run=False, retry_failed=True)
    assert (failed / "error.txt").stat().st_mtime_ns > error
    assert (done / "result.json").read_bytes() == before
    assert "loss is" in capfd.readouterr().out


def numbers(folder: Path) -> dict:
    return {
        path.parent.name: {key: json.loads(path.read_text())[key] for key in ("metrics", "history", "steps")}
        for path in folder.glob("*/result.json")
    }


def launch(spec: Path, folder: Path, log: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "glue_harness",
        "sweep",
        str(spec),
        "--output-dir",
        str(folder),
        "--jobs",
        "2",
    ]
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=out, stderr=out)


def finished(folder: Path) -> int:
    return len(list(folder.glob("*/result.json")))


def wait_until(condition) -> None:
    end = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(launcher: int) -> list[int]:
    """The processes whose parent's parent is the launcher: the fork server is between them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parents.get(parent) == launcher]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to find the workers")
def test_a_sweep_killed_three_times_ends_with_the_numbers_of_one_never_killed(tmp_path):
    """kill -9 to a worker, then twice to the launcher: each run is finished once, no worker stays behind."""
    spec = write(tmp_path, base={**BASE, "max_steps": 6, "save_every": 2}, grid={"seed": list(range(8))})
    whole, cut, log = tmp_path / "whole", tmp_path / "cut", tmp_path / "log"
    assert launch(spec, whole, log).wait(300) == 0
    process = launch(spec, cut, log)
    wait_until(lambda: finished(cut) >= 1)
    os.kill(workers_of(process.pid)[-1], signal.SIGKILL)
    wait_until(lambda: finished(cut) >= 3)
    orphans = workers_of(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))
    process = launch(spec, cut, log)
    wait_until(lambda: finished(cut) >= 5)
    process.kill()
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in cut.glob("*/result.json")}
    assert launch(spec, cut, log).wait(300) == 0, log.read_text()
    assert numbers(cut) == numbers(whole)
    assert len(numbers(cut)) == 8
    assert {path: path.stat().st_mtime_ns for path in done} == done


@pytest.mark.slow
def test_two_sweeps_on_one_folder_share_the_runs(tmp_path):
    spec = write(tmp_path, base=BASE, grid={"seed": list(range(6))})
    folder, log = tmp_path / "runs", tmp_path / "log"
    processes = [launch(spec, folder, log) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0], log.read_text()
    assert len(numbers(folder)) == 6
    logged = [path.read_text().splitlines() for path in folder.glob("*/metrics.jsonl")]
    assert [[json.loads(line)["step"] for line in lines] for lines in logged] == [[2]] * 6


def test_a_dry_run_does_nothing(tmp_path, capsys):
    spec = write(tmp_path, base=BASE, grid={"seed": [1, 2]})
    sweep(spec, tmp_path / "runs", jobs=1, dry_run=True)
    assert "2 runs, 0 of them are finished" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_asked_to_stop_has_its_runs_saved(tmp_path, number):
    """Ctrl-C in a terminal reaches the workers too, and both are asked once more by the sweep."""
    grid = {"seed": [1, 2]}
    settings = {
        "max_steps": 30_000,
        "epochs": 1000,
        "log_every": 1,
        "save_every": 30_000,
        "eval_every": 30_000,
    }
    spec = write(tmp_path, base={**BASE, **settings}, grid=grid)
    command = [sys.executable, "-m", "glue_harness", "sweep", spec, "--output-dir", tmp_path / "runs"]
    with subprocess.Popen(
        [*map(str, command), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as started:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            logs = list(tmp_path.glob("runs/*/metrics.jsonl"))
            if len(logs) == 2 and all(log.read_text().count("\n") > 3 for log in logs):
                break
            time.sleep(0.1)
        if number == signal.SIGINT:
            os.killpg(started.pid, number)
        else:
            started.send_signal(number)
        said, _ = started.communicate(timeout=120)
    assert started.returncode == 128 + number, said
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert said.splitlines()[1:] == [f"glue-harness: stopped by {name}: the same command continues"]
    assert not list(tmp_path.glob("runs/*/error.txt"))
    for log in logs:
        last = json.loads(log.read_text().splitlines()[-1])["step"]
        assert [path.name for path in log.parent.glob("checkpoint/*")] == [f"step-{last}"]


def test_of_each_task_the_run_that_leads_keeps_its_model_and_the_others_are_small(tmp_path):
    """Whatever the order in which runs end; a later, better run takes the place of the one that led."""
    grid = {"task": ["demo-entailment", "demo-acceptability"], "seed": [1, 2]}
    runs = read_spec(write(tmp_path, base={**BASE, "max_train_samples": 32}, grid=grid), tmp_path / "runs")
    do_runs([run.config for run in runs])
    by_task = {}
    for run in runs:
        folder = Path(run.config.output_dir)
        result = json.loads((folder / "result.json").read_text())
        score = result["metrics"]["last"][result["primary"]]
        by_task.setdefault(run.config.task, []).append((-score, folder.name, folder))
        assert not (folder / "checkpoint").exists()
    for standing in by_task.values():
        (_, _, leader), *others = sorted(standing)
        assert (leader / "model/model.safetensors").exists()
        for *_, folder in others:
            assert not (folder / "model").exists()
            assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 200_000


@pytest.mark.needs("parameter_efficient")
@pytest.mark.parametrize("keep", ["none", "all"])
def test_no_run_or_every_run_keeps_its_model(tmp_path, keep):
    base = {**BASE, "max_train_samples": 32, "adaptation": "bottleneck-adapter"}
    runs = read_spec(write(tmp_path, base=base, grid={"seed": [1, 2]}, keep=keep), tmp_path / "runs")
    assert read_keep(tmp_path / "spec.yaml") == keep
    do_runs([run.config for run in runs], keep=keep)
    for run in runs:
        left = {path.name for path in Path(run.config.output_dir).iterdir()}
        assert ({"model", "adapter"} <= left) == (keep == "all")
        assert "checkpoint" not in left


def test_models_of_runs_that_are_not_the_sweeps_stay(tmp_path):
    """A sweep's folder may hold other runs: their names do not end in their hash."""
    [one, two] = read_spec(write(tmp_path, base=BASE, grid={"seed": [1, 2]}), tmp_path / "runs")
    train(replace(one.config, output_dir=str(tmp_path / "runs/mine")))
    do_runs([one.config, two.config])
    assert (tmp_path / "runs/mine/model/model.safetensors").exists()


def test_large_predictions_go_with_the_model(tmp_path):
    folder = tmp_path / "runs" / "one-01234567"
    (folder / "model").mkdir(parents=True)
    (folder / "predictions.tsv").write_text("0\t" * 200_000)
    result = {
        "task": "rte",
        "primary": "accuracy",
        "metrics": {"last": {"accuracy": 1}},
        "hash": "0123456789",
    }
    (folder / "result.json").write_text(json.dumps(result))
    keep_models(folder, "none")
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_the_disk_follows_from_the_sizes_of_the_models(tmp_path, monkeypatch, capsys):
    """bert-base has 109,483,778 parameters with a head for two labels: four bytes each."""
    size = 4 * 109_483_778
    grid = {"task": ["rte", "mrpc"], "seed": [1, 2, 3]}
    base = {"model": "bert-base-uncased"}
    configs = [run.config for run in read_spec(write(tmp_path, base=base, grid=grid), tmp_path / "runs")]
    working, small = 9 * size, 6 * 200_000
    assert disk_needed(configs, "none", jobs=1) == working + small
    assert disk_needed(configs, "best", jobs=1) == 2 * size + working + small
    assert disk_needed(configs, "all", jobs=2) == 6 * size + 2 * working + small
    free = SimpleNamespace(free=4e9)
    monkeypatch.setattr("shutil.disk_usage", lambda place: free)
    with pytest.raises(
        ConfigurationError, match=r"needs about 4\.8 GB of disk .keep: best., 4\.0 GB are free"
    ):
        sweep(tmp_path / "spec.yaml", tmp_path / "runs", jobs=1, dry_run=False)
    assert not (tmp_path / "runs").exists()
    free.free = 5e9
    sweep(tmp_path / "spec.yaml", tmp_path / "runs", jobs=1, dry_run=True)
    assert "needs about 4.8 GB of disk (keep: best), 5.0 GB are free" in capsys.readouterr().out
