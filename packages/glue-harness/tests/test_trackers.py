"""What a run sends to its tracker is what it logs; read back from TensorBoard's own files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_common.errors import ConfigurationError

Train = Callable[..., dict[str, Any]]

SETTINGS: dict[str, Any] = {"tracker": "tensorboard", "log_every": 2, "eval_every": 4, "save_every": 4}
"""Eight steps: four logged, two evaluated, two saved."""


class Stop(Exception):
    """Ends a run in the middle."""


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Name → step → value, as TensorBoard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    tags = reader.Tags()["scalars"]
    return {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in tags}


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check(folder: Path, result: dict[str, Any]) -> None:
    found = curves(folder)
    lines = {line["step"]: line for line in logged(folder)}
    assert list(lines) == [2, 4, 6, 8]
    for name in ("loss", "learning_rate"):
        expected = {step: pytest.approx(line[name], rel=1e-5) for step, line in lines.items()}
        assert found[name] == expected
    scores = {entry["step"]: entry["metrics"]["accuracy"] for entry in result["history"]}
    assert found["validation/accuracy"] == {step: pytest.approx(value) for step, value in scores.items()}


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_curves_are_those_of_the_run(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where the run was cut off after a step that was logged and not saved: it is there once."""
    from glue_harness.run.loop import Training

    check(tmp_path / "whole", train("whole", **SETTINGS))
    step = Training._train_step

    def stop(self: Training, *rest: Any) -> Any:
        if self.step == 7:
            raise Stop
        return step(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_train_step", stop)
        with pytest.raises(Stop):
            train("cut", **SETTINGS)
    assert max(curves(tmp_path / "cut")["loss"]) == 6
    identifier = (tmp_path / "cut/tracker.txt").read_text()
    check(tmp_path / "cut", train("cut", **SETTINGS))
    assert (tmp_path / "cut/tracker.txt").read_text() == identifier
    train("cut", **SETTINGS, overwrite=True, max_steps=2)
    assert (tmp_path / "cut/tracker.txt").read_text() != identifier


def test_a_run_without_a_tracker_writes_none_of_its_files(train: Train, tmp_path: Path) -> None:
    train("plain", max_steps=1)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names.isdisjoint({"tensorboard", "tracker.txt"})


def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("glue_harness.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"glue-harness\[wandb\]"):
        train("refused", tracker="wandb")
    assert not (tmp_path / "refused").exists()
    with pytest.raises(ConfigurationError, match="tracker"):
        train("refused", tracker="tensorbored")
