"""A run ends when its score has stopped rising, counts on when cut off, and may keep the best weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from finetune_common.errors import ConfigurationError
from glue_harness import parse_mapping
from glue_harness.run.evaluation import Evaluation, History

Train = Callable[..., dict[str, Any]]

SCORES = [0.50, 0.60, 0.62, 0.61, 0.62, 0.59, 0.70, 0.40]
"""Best so far at evaluations 1, 2, 3; then three without improvement."""

SETTINGS: dict[str, Any] = {"eval_every": 1, "save_every": 2, "log_every": 1, "epochs": 1}


class Stop(Exception):
    """Ends a run in the middle."""


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of the primary metric give `SCORES`, one after the other; predictions stay the model's."""
    from glue_harness.run.loop import Training

    evaluate = Training._evaluate

    def known(self: Training) -> Evaluation:
        found = evaluate(self)
        scores = dict.fromkeys(found.metrics, SCORES[self.step - 1])
        return Evaluation(scores, found.scores)

    monkeypatch.setattr(Training, "_evaluate", known)


@pytest.mark.parametrize(
    ("patience", "delta", "steps", "best"),
    [(1, 0.0, 4, 3), (3, 0.0, 6, 3), (4, 0.0, 8, 7), (2, 0.05, 4, 3), (None, 0.0, 8, 7)],
)
@pytest.mark.usefixtures("scored")
def test_stops_after_evaluations_without_improvement(
    train: Train, patience: int | None, delta: float, steps: int, best: int
) -> None:
    result = train(**SETTINGS, early_stopping=patience, early_stopping_delta=delta)
    assert result["steps"] == len(result["history"]) == steps
    assert result["stopped_early"] is (steps < 8)
    assert result["metrics"]["last"]["accuracy"] == SCORES[steps - 1]
    assert result["metrics"]["best"]["accuracy"] == SCORES[best - 1]


@pytest.mark.usefixtures("scored")
def test_schedule_is_that_of_the_whole_run(train: Train, tmp_path: Path) -> None:
    def rates(folder: str) -> list[float]:
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["learning_rate"] for line in lines]

    train("stopped", **SETTINGS, early_stopping=1)
    train("whole", **SETTINGS)
    assert rates("stopped") == rates("whole")[:4]


@pytest.mark.usefixtures("scored")
def test_a_run_cut_off_keeps_its_count(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Cut off after step 5, it goes on from step 4 and stops after step 6, as if nothing had been."""
    from glue_harness.run.loop import Training

    after = Training._after_step

    def stop(self: Training, *rest: Any) -> None:
        after(self, *rest)
        if self.step == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_after_step", stop)
        with pytest.raises(Stop):
            train("cut", **SETTINGS, early_stopping=3)
    assert max(path.name for path in (tmp_path / "cut/checkpoint").glob("step-*")) == "step-4"
    cut, whole = train("cut", **SETTINGS, early_stopping=3), train("whole", **SETTINGS, early_stopping=3)
    assert cut["steps"] == whole["steps"] == 6
    assert cut["history"] == whole["history"]


@pytest.mark.usefixtures("scored")
def test_best_weights_are_kept_and_predict(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the run dies after it went back to them and before its result is written."""
    from glue_harness.run.records import RunFolder

    settings = SETTINGS | {"optimizer": {"name": "sgd", "lr": 0.1}, "epochs": 2, "max_steps": 8}
    train("three", **settings | {"max_steps": 3, "schedule": "constant"})
    plain = train("plain", **settings, schedule="constant", early_stopping=3)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_result", lambda *_: (_ for _ in ()).throw(Stop))
        with pytest.raises(Stop):
            train("best", **settings, schedule="constant", early_stopping=3, load_best=True)
    best = train("best", **settings, schedule="constant", early_stopping=3, load_best=True)
    assert best["history"] == plain["history"]
    assert best["metrics"] == plain["metrics"]
    assert (tmp_path / "best/predictions.tsv").read_text() == (tmp_path / "three/predictions.tsv").read_text()
    assert (tmp_path / "best/predictions.tsv").read_text() != (tmp_path / "plain/predictions.tsv").read_text()
    kept, three = (
        load_file(tmp_path / folder / "model.safetensors")
        for folder in ("best/checkpoint/step-6", "three/checkpoint/step-3")
    )
    assert all(kept[name].equal(weight) for name, weight in three.items())
    assert [path.name for path in (tmp_path / "best/checkpoint").iterdir()] == ["step-6"]


def test_equal_scores_are_no_improvement_and_neither_is_nan() -> None:
    history = History("accuracy")
    for step, value in enumerate([0.5, 0.5, float("nan"), 0.5]):
        history.add(step, step, {"accuracy": value})
    assert history.stale(0.0) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": 0}, "early_stopping=0"),
        ({"early_stopping": 2, "early_stopping_delta": -0.1}, "early_stopping_delta"),
        ({"early_stopping_delta": 0.1}, "without early_stopping"),
    ],
)
def test_what_means_nothing_is_refused(settings: dict[str, Any], message: str) -> None:
    run = {"task": "demo-entailment", "model": "demo", "output_dir": "unused"}
    with pytest.raises(ConfigurationError, match=message):
        parse_mapping(run | settings)


def test_unused_options_leave_a_run_what_it_was() -> None:
    """Hashes name the folders of sweeps; these were taken before the options existed."""
    run = {"task": "rte", "model": "demo", "output_dir": "unused"}
    others = {"seed": 41, "gradient": [], "optimizer": {"name": "sgd", "lr": 0.1}, "accumulate": 2}
    assert parse_mapping(run).hash == "b6f864abb40a"
    assert parse_mapping(run | others).hash == "41eab0e71509"
    for elsewhere in ({"tracker": "tensorboard"}, {"sharding": "fsdp"}, {"early_stopping": None}):
        assert parse_mapping(run | elsewhere).hash == "b6f864abb40a"
    for used in ({"early_stopping": 2}, {"load_best": True}):
        assert parse_mapping(run | used).hash != "b6f864abb40a"
