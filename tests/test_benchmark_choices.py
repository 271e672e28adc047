"""Settings of scored runs are those of the best trials, which is found by numbers alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chosen import best_trials, same_method, scored
from finetune_common.errors import ConfigurationError
from reproduce.scales import points, read, settings

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

SPEC = {
    "base": {
        "task": "rte",
        "model": "demo",
        "seed": 40,
        "evaluate_on": ["choose"],
        "hold_out": {"choose": 9},
    },
    "cases": [
        {"optimizer": {"name": "adamw"}, "grid": {"optimizer.lr": [1e-4, 2e-4]}},
        {"optimizer": {"name": "adamw", "lr": 1e-4}, "grid": {"weight_decay": [0.1]}},
        {"optimizer": {"name": "sage-adamw", "lr": 1e-4}, "grid": {"optimizer.beta3": [0.6, 0.9]}},
        {"optimizer": {"name": "sage-adamw", "form": "released", "lr": 1e-4}},
        {"optimizer": {"name": "clipped-adam", "clip": "global", "quantile": 0.1, "lr": 1e-4}},
        {"optimizer": {"name": "clipped-adam", "clip": "global", "max_norm": 0.1, "lr": 1e-4}},
        {"optimizer": {"name": "adamw", "lr": 1e-4}, "gradient": [{"name": "agni", "eta": 0.1}]},
    ],
}


def result(point: dict[str, Any], score: float) -> dict[str, Any]:
    whole = settings(point)
    slots = {name: whole.pop(name) for name in ("adaptation", "activation", "gradient", "optimizer")}
    return {
        "settings": whole,
        "slots": slots,
        "primary": "accuracy",
        "metrics": {"last": {"accuracy": score}},
    }


SCORES = [0.7, 0.8, 0.9, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2]


def test_the_best_trial_of_each_method_is_scored() -> None:
    """Rates and decay are one method's; another form, or another number that is named, is another method.

    So is a method of another slot beside the same optimizer.
    """
    results = [result(*pair) for pair in zip(points(SPEC), SCORES, strict=True)]
    best = best_trials(SPEC, results[::-1])
    assert best == [
        {"optimizer": {"name": "adamw", "lr": 1e-4}, "weight_decay": 0.1},
        {"optimizer": {"name": "sage-adamw", "lr": 1e-4, "beta3": 0.6}},
        {"optimizer": {"name": "sage-adamw", "form": "released", "lr": 1e-4}},
        {"optimizer": {"name": "clipped-adam", "clip": "global", "quantile": 0.1, "lr": 1e-4}},
        {"optimizer": {"name": "clipped-adam", "clip": "global", "max_norm": 0.1, "lr": 1e-4}},
        {"optimizer": {"name": "adamw", "lr": 1e-4}, "gradient": [{"name": "agni", "eta": 0.1}]},
    ]
    made = scored(SPEC, results, [{"activation": "checkpoint"}], seeds=2)
    assert made["grid"] == {"seed": [41, 42]}
    assert made["cases"][1] == {**best[0], "activation": "checkpoint"}
    assert made["base"]["evaluate_on"] == ["score", "validation"]
    assert "seed" not in made["base"]


def test_a_trial_that_was_not_run_is_told() -> None:
    results = [result(*pair) for pair in zip(points(SPEC), SCORES, strict=True)]
    with pytest.raises(ConfigurationError, match="run the trials first"):
        best_trials(SPEC, results[1:])


def committed() -> list[Path]:
    """The specifications of trials whose results are kept."""
    return [
        path
        for path in sorted(BENCHMARKS.glob("*/*-trials.yaml"))
        if (path.parent / "results" / f"{path.stem}.json").exists()
    ]


@pytest.mark.parametrize("path", committed(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_committed_specifications_have_what_their_trials_chose(path: Path) -> None:
    kept = path.parent / "results" / f"{path.stem}.json"
    best = best_trials(read(path), json.loads(kept.read_text(encoding="utf-8")))
    spec = path.with_name(path.name.replace("-trials", ""))
    cases = yaml.safe_load(spec.read_text(encoding="utf-8"))["cases"]
    assert all(point in cases for point in best)


@pytest.mark.parametrize("path", committed(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_method_had_as_many_trials(path: Path) -> None:
    """Seven each, and the best rate is not at an end of its grid."""
    spec = read(path)
    trials = [{k: v for k, v in point.items() if spec["base"].get(k) != v} for point in points(spec)]
    best = best_trials(spec, json.loads((path.parent / "results" / f"{path.stem}.json").read_text("utf-8")))
    for chosen in best:
        own = [trial for trial in trials if same_method(chosen, trial)]
        assert len(own) == 7
        rates = {trial["optimizer"]["lr"] for trial in own}
        assert min(rates) < chosen["optimizer"]["lr"] < max(rates)
