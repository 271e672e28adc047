"""Installing a package is all it takes: its methods are listed, take options, run, compose and resume."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ALL = {
    "adaptation": {"name": "toy", "layers": [0]},
    "activation": {"name": "toy"},
    "gradient": [{"name": "toy", "size": 0.1}, {"name": "toy-scale", "factor": 0.7}],
    "optimizer": {"name": "toy", "lr": 0.002, "decay": 0.8},
    "monitor": [{"name": "toy"}],
}


@pytest.fixture(scope="module")
def installed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `pip install --no-deps --target` leaves it, written without a network."""
    source, target = root / "tests/toy_methods", tmp_path_factory.mktemp("site")
    shutil.copytree(source / "src/toy_methods", target / "toy_methods")
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    information = target / f"toy_methods-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in points.items())])
        for group, points in project["entry-points"].items()
    ]
    (information / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    return target


@pytest.fixture
def toy(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package can be found by this process."""
    from finetune_common.slots import available

    monkeypatch.syspath_prepend(installed)
    available.cache_clear()
    yield
    available.cache_clear()
    for name in [name for name in sys.modules if name.startswith("toy_methods")]:
        del sys.modules[name]


@pytest.fixture
def train(toy: None, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a configuration of a few steps and return its result."""
    from glue_harness import parse_mapping, run

    def call(folder: str, **settings: Any) -> dict[str, Any]:
        defaults = {"task": "demo-entailment", "model": "demo", "output_dir": str(tmp_path / folder)}
        small = {"max_train_samples": 32, "batch_size": 8, "max_steps": 5, "save_every": 2, "log_every": 1}
        return run(parse_mapping(defaults | small | settings))

    return call


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def glue_harness(path: object, *argv: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    line = [sys.executable, "-m", "glue_harness", *argv]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def command(path: object, *argv: str) -> str:
    done = glue_harness(path, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_list_shows_the_methods_of_an_installed_package(installed: Path) -> None:
    rows = [line.split("│") for line in command(installed, "list", "methods").splitlines()]
    mine = [[cell.strip() for cell in row[1:-1]] for row in rows if "toy-methods 0.1.0" in "".join(row)]
    assert [row[:2] for row in mine] == [
        ["adaptation", "toy"],
        ["activation", "toy"],
        ["gradient", "toy"],
        ["gradient", "toy-scale"],
        ["optimizer", "toy"],
        ["monitor", "toy"],
    ]
    assert mine[2][2] == "Normal noise and a constant are added to every gradient."


def test_help_shows_the_options_of_chosen_methods(installed: Path) -> None:
    said = command(installed, "run", "--optimizer", "toy", "--gradient", "toy", "--monitor", "toy", "--help")
    words = " ".join(said.split())
    for expected in (
        "--optimizer.lr LR Step size, at least 0. (type: float, default: 0.001)",
        "--optimizer.decay DECAY Decay of the momentum, in [0, 1). (type: float, default: 0.9)",
        "--gradient.size SIZE Standard deviation of what is added, at least 0.",
        "--gradient.shift SHIFT Constant that is added.",
        "--optimizer NAME",
    ):
        assert expected in words
    assert "--gradient.factor" not in words


def test_broken_package_is_named_and_the_others_still_listed(installed: Path, tmp_path: Path) -> None:
    information = tmp_path / "broken-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[finetune_common.monitors]\nwatch = no_such_module:Watch\n"
    )
    listed = " ".join(command(f"{installed}{os.pathsep}{tmp_path}", "list", "methods").split())
    assert "no_such_module" in listed
    assert "toy-scale" in listed
    line = [
        "run",
        "--task",
        "demo-entailment",
        "--model",
        "demo",
        "--output-dir",
        "unused",
        "--monitor",
        "watch",
    ]
    refused = glue_harness(f"{installed}{os.pathsep}{tmp_path}", *line)
    assert refused.returncode == 2
    assert "monitor 'watch' cannot be imported from no_such_module:Watch" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.usefixtures("toy")
def test_options_are_checked_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    from glue_harness.cli import main

    line = ["run", "--task", "demo-entailment", "--model", "demo", "--output-dir", "unused"]
    for more, said in (
        (["--optimizer", "toy", "--optimizer.decay", "1"], "decay=1.0 is out of range: allowed is [0, 1)"),
        (["--gradient", "toy", "--gradient.size", "-1"], "size=-1.0 is out of range"),
        (["--gradient", "toy,toyy"], "gradient 'toyy' is unknown: did you mean 'toy'"),
        (["--gradient", "toy", "--gradient.factor", "1"], "no option of gradient 'toy': choose from size"),
        (
            ["--gradient", "[{name: toy, size: much}, {name: toy-scale}]"],
            "gradient.size: much cannot be used",
        ),
        (["--gradient", "toy,toy-scale", "--gradient.size", "1"], "--gradient.size"),
    ):
        assert main([*line, *more]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_methods_of_every_slot_run_and_are_recorded(
    train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    result = train("all", **ALL)
    plain = train("plain")
    assert result["slots"] == {
        "adaptation": {"name": "toy", "layers": [0]},
        "activation": {"name": "toy"},
        "gradient": [
            {"name": "toy", "size": 0.1, "shift": 0.0, "seed": 0},
            {"name": "toy-scale", "factor": 0.7},
        ],
        "optimizer": {"name": "toy", "lr": 0.002, "decay": 0.8},
    }
    assert result["versions"]["toy-methods"] == "0.1.0"
    assert "toy-methods" not in plain["versions"]
    assert 0 < result["parameters"]["trainable"] < result["parameters"]["total"]
    assert result["saved_activation_bytes"] != plain["saved_activation_bytes"]
    entries = logged(tmp_path / "all")
    assert [entry["toy.looks"] for entry in entries] == [1, 2, 3, 4, 5]
    assert all("toy.gradient" in entry for entry in entries)
    assert result["hash"] != plain["hash"]


def test_gradient_methods_act_in_the_order_given(
    train: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """One step from the same weights: g, then g/2 + 3, then (g + 3)/2."""
    scale = {"name": "toy-scale", "factor": 0.5}
    add = {"name": "toy", "size": 0.0, "shift": 3.0}
    found = {}
    for name, methods in {"none": [], "scale, add": [scale, add], "add, scale": [add, scale]}.items():
        train(name, gradient=methods, monitor="toy", max_steps=1, max_grad_norm=0.1)
        found[name] = logged(tmp_path / name)[0]["toy.gradient"]
    g = found["none"]
    assert abs(g) <= 0.1
    assert found["scale, add"] == pytest.approx(g / 2 + 3, abs=1e-6)
    assert found["add, scale"] == pytest.approx((g + 3) / 2, abs=1e-6)


class Stop(Exception):
    """Ends a run in the middle."""


def test_state_of_every_method_survives_an_interruption(
    train: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from glue_harness.run.loop import Training

    whole = train("whole", accumulate=2, epochs=4, **ALL)
    with monkeypatch.context() as patch:
        step, steps = Training._train_step, []

        def stop(self: Training, *rest: Any) -> Any:
            steps.append(1)
            if len(steps) == 4:
                raise Stop
            return step(self, *rest)

        patch.setattr(Training, "_train_step", stop)
        with pytest.raises(Stop):
            train("stopped", accumulate=2, epochs=4, **ALL)
    resumed = train("stopped", accumulate=2, epochs=4, **ALL)
    assert resumed["metrics"] == whole["metrics"]
    assert logged(tmp_path / "stopped") == logged(tmp_path / "whole")
    first, second = (
        load_file(tmp_path / name / "checkpoint/step-5/model.safetensors") for name in ("whole", "stopped")
    )
    assert all((first[name] == second[name]).all() for name in first)
    without = train(
        "without", accumulate=2, epochs=4, **(ALL | {"gradient": [{"name": "toy", "size": 0.1, "seed": 1}]})
    )
    assert without["history"] is not None
    assert logged(tmp_path / "without") != logged(tmp_path / "whole")
