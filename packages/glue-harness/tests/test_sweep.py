"""Sweeps: what a specification expands to, and that its runs are done once."""

import json
from pathlib import Path

import pytest
import yaml

from finetune_common.errors import ConfigurationError
from glue_harness.sweep import sweep
from glue_harness.sweep.spec import read_spec

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


@pytest.mark.parametrize(
    ("exclusion", "left"),
    [
        ({"optimizer": "sgd"}, 2),
        ({"optimizer": "sgd", "seed": 1}, 3),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, 2),
        ({"optimizer": {"name": "sgd", "lr": 0.2}}, 4),
        ({"task": "demo-similarity", "seed": 2}, 2),
    ],
)
def test_exclusions_leave_out_what_they_cover(tmp_path, exclusion, left):
    grid = {"optimizer": [{"name": "adamw", "lr": 0.1}, {"name": "sgd", "lr": 0.1}], "seed": [1, 2]}
    spec = write(tmp_path, base=BASE, grid=grid, exclude=[exclusion])
    assert len(read_spec(spec, tmp_path)) == left


def test_a_point_that_is_named_twice_runs_once(tmp_path):
    spec = write(tmp_path, base=BASE, grid={"seed": [1, 1, 2]})
    assert len(read_spec(spec, tmp_path)) == 2


def test_variables_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SWEEP_TEST_TASK", "demo-entailment")
    spec = write(tmp_path, base={**BASE, "task": "${SWEEP_TEST_TASK}"}, grid={"seed": [1]})
    assert read_spec(spec, tmp_path)[0].config.task == "demo-entailment"
    monkeypatch.delenv("SWEEP_TEST_TASK")
    with pytest.raises(ConfigurationError, match="no SWEEP_TEST_TASK: set it"):
        read_spec(spec, tmp_path)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"bse": BASE}, "'bse' is unknown: did you mean 'base'"),
        ({"base": [1]}, "base has to be a mapping"),
        ({"base": BASE, "grid": {"seed": 3}}, "grid.seed has to be a list"),
        ({"base": BASE, "grid": {"seed": [-1]}}, "seed=-1"),
        ({"base": BASE, "grid": {"optimizer": ["adamm"]}}, "did you mean"),
        ({"base": {**BASE, "epoch": 3}}, "'epoch' is unknown: did you mean 'epochs'"),
        ({"base": BASE, "exclude": [{"model": "demo"}]}, "nothing to run"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(tmp_path, spec, said):
    with pytest.raises(ConfigurationError) as error:
        read_spec(write(tmp_path, **spec), tmp_path)
    assert said in str(error.value)
    assert str(tmp_path / "spec.yaml") in str(error.value)
    assert "\n" not in str(error.value)


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
    failed, done = sorted(folder.iterdir(), key=lambda path: (path / "result.json").exists())
    assert "loss is" in (failed / "error.txt").read_text()
    before = (done / "result.json").read_bytes()
    assert json.loads(before)["steps"] == 2
    capfd.readouterr()
    with pytest.raises(ConfigurationError, match="1 of 1 runs failed"):
        sweep(spec, folder, jobs=1, dry_run=False)
    assert (done / "result.json").read_bytes() == before


def test_a_dry_run_does_nothing(tmp_path, capsys):
    spec = write(tmp_path, base=BASE, grid={"seed": [1, 2]})
    sweep(spec, tmp_path / "runs", jobs=1, dry_run=True)
    assert "2 runs, 0 of them finished" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
