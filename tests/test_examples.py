"""Installing a package is all it takes: the example methods are listed, take options, run, and resume."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = ("galore", "lisa", "sophia")
LINE = ["run", "--task", "demo-entailment", "--model", "demo", "--output-dir", "unused"]


def glue_harness(*argv: str, path: object = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    line = [sys.executable, "-m", "glue_harness", *argv]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def command(*argv: str, path: object = "") -> str:
    done = glue_harness(*argv, path=path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_they_are_small_and_bring_all_that_the_harness_knows_of_them(root: Path) -> None:
    found = [path.parent.name for path in root.glob("examples/methods/*/pyproject.toml")]
    assert sorted(found) == sorted(EXAMPLES)
    for name in EXAMPLES:
        folder = root / "examples/methods" / name
        source = [line for file in folder.glob("src/**/*.py") for line in file.read_text().splitlines()]
        assert 30 < sum(bool(line.strip()) for line in source) < 120
        assert list(folder.glob("tests/test_*.py"))
        needs = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
        assert {word.partition(">")[0] for word in needs} == {"torch", "finetune-common"}
    for file in [*root.glob("shared/src/**/*.py"), *root.glob("packages/*/src/**/*.py")]:
        assert not set(EXAMPLES) & set(re.findall(r"\w+", file.read_text().lower())), file


def test_list_shows_the_methods_of_installed_packages() -> None:
    rows = [line.split("│") for line in command("list", "methods").splitlines()]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows if "example-" in "".join(row)]
    assert [row[:2] for row in cells] == [
        ["adaptation", "lisa"],
        ["optimizer", "galore"],
        ["optimizer", "sophia"],
    ]
    assert cells[0][2].startswith("A few layers train at a time")


def test_help_shows_the_options_of_chosen_methods() -> None:
    words = " ".join(command("run", "--optimizer", "sophia", "--adaptation", "lisa", "--help").split())
    for expected in (
        "--optimizer.lr X Largest step of a coordinate, at least 0. (default: 5e-05)",
        "--optimizer.every N Steps between two estimates of the curvature (k in the paper), at least 1.",
        "--adaptation.layers N Layers that train at a time (γ in the paper), at least 1.",
        "--optimizer NAME",
    ):
        assert expected in words
    assert "--optimizer.rank" not in words


def test_broken_package_is_named_and_the_others_still_listed(tmp_path: Path) -> None:
    information = tmp_path / "broken-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (information / "entry_points.txt").write_text(
        "[finetune_common.monitors]\nwatch = no_such_module:Watch\n"
    )
    listed = " ".join(command("list", "methods", path=tmp_path).split())
    assert "no_such_module" in listed
    assert "galore" in listed
    refused = glue_harness(*LINE, "--monitor", "watch", path=tmp_path)
    assert refused.returncode == 2
    assert "monitor 'watch' cannot be imported from no_such_module:Watch" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--optimizer", "sophia", "--optimizer.gamma", "0"],
            "gamma=0.0 is out of range: allowed is",
        ),
        (["--optimizer", "sophia", "--optimizer.betas", "[0.9, 1.0]"], "betas=1.0 is out of range"),
        (["--optimizer", "sofia"], "optimizer 'sofia' is unknown: did you mean 'sophia'"),
        (["--optimizer", "galore", "--optimizer.gamma", "1"], "no option of optimizer 'galore': choose from"),
        (["--optimizer", "{name: galore, rank: much}"], "optimizer.rank: much cannot be used"),
        (["--adaptation", "lisa", "--adaptation.every", "0"], "every=0 is out of range"),
    ],
)
def test_options_are_checked_like_any_other(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from glue_harness.cli import main

    assert main([*LINE, *more]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


SETTINGS: dict[str, dict[str, Any]] = {
    "lisa": {"adaptation": {"name": "lisa", "layers": 1, "every": 5}},
    "sophia": {"optimizer": {"name": "sophia", "lr": 1e-3, "every": 3}},
    "galore": {"optimizer": {"name": "galore", "lr": 1e-2, "rank": 2, "every": 5}},
}
KILLED = """
import json, os, signal, sys, torch
from glue_harness.cli import main
from glue_harness.run.loop import Training
torch.set_num_threads(1)
train_step = Training._train_step
def one(self, *rest):
    if self.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(self, *rest)
Training._train_step = one
main(sys.argv[1:])
"""
"""A run that is killed in its eighth step, after the checkpoint of the sixth."""


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_trained_killed_and_resumed_bit_for_bit(name: str, tmp_path: Path) -> None:
    """With dropout and accumulation, in the middle of what lasts for several steps of the method."""
    from safetensors.torch import load_file

    from glue_harness.cli import main

    common = {"task": "demo-entailment", "model": "demo", "max_train_samples": 64, "batch_size": 4}
    common |= {"accumulate": 2, "max_steps": 10, "save_every": 3, "log_every": 1, "weight_decay": 0.1}
    (tmp_path / "run.yaml").write_text(json.dumps(common | SETTINGS[name]))

    def line(folder: str) -> list[str]:
        return ["run", "--config", str(tmp_path / "run.yaml"), "--output-dir", str(tmp_path / folder)]

    torch.set_num_threads(1)
    assert main(line("whole")) == 0
    killed = subprocess.run([sys.executable, "-c", KILLED, *line("cut")], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    kept = {path.name for path in (tmp_path / "cut/checkpoint").glob("step-*")}
    assert "step-6" in kept
    assert "step-9" not in kept
    assert main(line("cut")) == 0
    logged = [(tmp_path / folder / "metrics.jsonl").read_text() for folder in ("whole", "cut")]
    assert logged[0] == logged[1]
    results = [json.loads((tmp_path / folder / "result.json").read_text()) for folder in ("whole", "cut")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["versions"][f"example-{name}"] == "0.1.0"
    assert results[0]["parameters"]["trainable"] == results[0]["parameters"]["total"]
    one, other = (
        load_file(tmp_path / folder / "checkpoint/step-10/model.safetensors") for folder in ("whole", "cut")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_all_layers_at_a_time_is_the_full_run(tmp_path: Path) -> None:
    """The limit case of the adaptation, through the harness: the demo model has two layers."""
    from glue_harness import parse_mapping, run

    found = []
    for adaptation in ({"name": "lisa", "layers": 2, "every": 1}, {"name": "full"}):
        folder = tmp_path / adaptation["name"]
        settings = {"task": "demo-entailment", "model": "demo", "output_dir": str(folder), "max_steps": 4}
        run(parse_mapping(settings | {"max_train_samples": 32, "batch_size": 8, "adaptation": adaptation}))
        found.append((folder / "predictions.tsv").read_text())
    assert found[0] == found[1]
