"""A run that goes on from the checkpoint of another: what it takes over, and what is its own."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from finetune_common.errors import ConfigurationError
from glue_harness import parse_mapping, run
from glue_harness.run import checkpoint, snapshot
from glue_harness.run.loop import Training

BASE = {
    "task": "demo-similarity",
    "model": "demo",
    "max_train_samples": 64,
    "batch_size": 8,
    "epochs": 3,
    "warmup": 0.25,
    "optimizer": {"name": "adamw", "lr": 1e-3},
}


class Enough(Exception):
    """Ends a run where a test wants it."""


def configured(folder: Path, *options: str, **settings):
    return parse_mapping({**BASE, "output_dir": str(folder), **settings}, options)


def trained_until(folder: Path, epoch: float, **settings) -> Path:
    def stop(training: Training) -> None:
        if training.history.last["epoch"] >= epoch:
            raise Enough

    with pytest.raises(Enough):
        run(configured(folder, **settings), on_evaluation=stop)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    newest = checkpoint.latest(folder / "checkpoint")
    assert newest is not None
    return load_file(newest / "model.safetensors")


@pytest.fixture(scope="module")
def donor(tmp_path_factory) -> Path:
    return trained_until(tmp_path_factory.mktemp("donor"), 2)


def test_with_equal_settings_it_is_the_run_never_stopped(donor, tmp_path):
    whole = run(configured(tmp_path / "whole"))
    parts = run(configured(tmp_path / "parts"), start_from=donor)
    assert parts["history"] == whole["history"]
    ours, theirs = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_settings_are_its_own_and_the_optimizers_state_is_the_others(donor, tmp_path, monkeypatch):
    """Linear decay over 24 steps, 6 of warm-up: after 16 steps (24 - 16) / 18 of the rate is left."""
    found = {}

    take_over = snapshot.continue_from

    def look(training: Training, other: Path) -> None:
        take_over(training, other)
        found.update(deepcopy(training.optimizer.state_dict()))

    monkeypatch.setattr(snapshot, "continue_from", look)
    run(configured(tmp_path, "--optimizer.lr=0.5", weight_decay=0.2), start_from=donor)
    groups = found["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([0.5 * 8 / 18] * len(groups))
    assert {group["weight_decay"] for group in groups} == {0.2, 0.0}
    newest = checkpoint.latest(donor / "checkpoint")
    assert newest is not None
    theirs = torch.load(newest / "state.pt", weights_only=True)["optimizer"]["state"]
    assert found["state"].keys() == theirs.keys()
    for key, state in theirs.items():
        assert all(torch.equal(found["state"][key][name], value) for name, value in state.items())


def test_with_another_batch_size_the_point_is_kept_in_epochs(donor, tmp_path):
    result = run(configured(tmp_path, batch_size=16), start_from=donor)
    assert [(entry["epoch"], entry["step"]) for entry in result["history"]] == [(1, 8), (2, 16), (3, 12)]
    assert result["steps"] == 12


def test_with_fewer_epochs_than_were_trained_nothing_is_left_to_do(donor, tmp_path):
    result = run(configured(tmp_path, epochs=1), start_from=donor)
    assert [entry["epoch"] for entry in result["history"]] == [1, 2]


def test_the_best_weights_are_its_own(donor, tmp_path):
    """A rate of 1 spoils the model at once: what the other run reached is not what this one's files hold."""
    result = run(configured(tmp_path, "--optimizer.lr=1", load_best=True, epochs=4), start_from=donor)
    best = max(result["history"], key=lambda entry: entry["metrics"]["pearson"])
    assert [entry["epoch"] for entry in result["history"]] == [3, 4]
    assert result["metrics"]["last"] == result["metrics"]["best"] == best["metrics"]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="no checkpoint to continue from"):
        run(configured(tmp_path / "run"), start_from=tmp_path)
