"""Settings of scored runs are those of the best trials, which is found by numbers alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from chosen import at_an_end, best_trials, main, same_method, scored
from finetune_common.errors import ConfigurationError
from reproduce.commands import status_of
from reproduce.scales import points, read, settings

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

SPEC = {
    "base": {
        "task": "rte",
        "model": "demo",
        "seed": 40,
        "evaluate_on": ["choose"],
        "hold_out": {"choose": 9, "score": 9},
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


def test_layers_are_numbers_of_one_method_and_the_kinds_of_layers_are_not() -> None:
    def lora(**options: Any) -> dict[str, Any]:
        return {"adaptation": {"name": "lora", **options}}

    assert same_method(lora(layers=[1]), lora(layers=[3, 4]))
    assert not same_method(lora(targets=["q"]), lora(targets=["q", "v"]))
    assert not same_method(lora(layers=[1]), lora(layers="all"))
    assert not same_method(lora(layers=[1]), lora())


def test_a_trial_that_was_not_run_is_told() -> None:
    results = [result(*pair) for pair in zip(points(SPEC), SCORES, strict=True)]
    with pytest.raises(ConfigurationError, match="run the trials first"):
        best_trials(SPEC, results[1:])


def test_of_equal_trials_the_first_is_taken() -> None:
    equal = [result(point, 0.5) for point in points(SPEC)]
    assert best_trials(SPEC, equal)[0] == {"optimizer": {"name": "adamw", "lr": 1e-4}}


def test_a_best_number_at_the_end_of_those_tried_is_told() -> None:
    """AdamW: lr 1e-4 of 1e-4 and 2e-4, decay 0.1 of 0.01 (the default) and 0.1; SAGE: 0.6 of 0.6 and 0.9.

    What only one value was tried of is at no end.
    """
    results = [result(*pair) for pair in zip(points(SPEC), SCORES, strict=True)]
    told = list(at_an_end(SPEC, best_trials(SPEC, results)))
    assert told == [
        "weight_decay 0.1 is the largest of 0.01, 0.1",
        "optimizer.lr 0.0001 is the smallest of 0.0001, 0.0002",
        "optimizer.beta3 0.6 is the smallest of 0.6, 0.9",
    ]
    inside = {**SPEC, "cases": [{"optimizer": {"name": "sgd"}, "grid": {"optimizer.lr": [0.1, 0.2, 0.4]}}]}
    scores = [result(*pair) for pair in zip(points(inside), (0.1, 0.3, 0.2), strict=True)]
    assert not list(at_an_end(inside, best_trials(inside, scores)))


def _spec(**base: Any) -> dict[str, Any]:
    return {**SPEC, "base": {**SPEC["base"], **base}}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (_spec(evaluate_on=None), "judged on validation"),
        (_spec(evaluate_on=["score"]), "judged on score"),
        (_spec(hold_out={"choose": 9}), "judged on choose: give base.hold_out"),
        ({**SPEC, "grid": {"seed": [1, 2]}}, "2 seeds: give one"),
    ],
)
def test_trials_whose_best_would_be_lucky_are_refused(spec: dict[str, Any], said: str) -> None:
    results = [result(*pair) for pair in zip(points(SPEC), SCORES, strict=True)]
    with pytest.raises(ConfigurationError, match=said):
        scored(spec, results)


def status(*words: Path) -> int:
    """Run the script's command line; returns its exit status."""
    return status_of("chosen", lambda: main([str(word) for word in words]))


def test_what_cannot_be_chosen_from_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials, runs = tmp_path / "trials.yaml", tmp_path / "runs.json"
    trials.write_text(yaml.safe_dump(SPEC))
    complete = [result(*pair) for pair in zip(points(SPEC), SCORES, strict=True)]
    diverged = [result(point, float("nan")) for point in points(SPEC)]
    contents = {"no result": complete[1:], "2 results": [*complete, complete[0]], "accuracy is nan": diverged}
    written = {said: json.dumps(results) for said, results in contents.items()}
    for said, text in {**written, "cannot be read": "{", "holds no results": "[]"}.items():
        runs.write_text(text)
        assert status(trials, runs, tmp_path / "spec.yaml") == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    for lost in (tmp_path / "none.yaml", tmp_path):
        assert status(lost, runs, tmp_path / "spec.yaml") == 2
        assert capsys.readouterr().err.startswith(f"chosen: error: {lost}")
    assert not (tmp_path / "spec.yaml").exists()
    runs.write_text(json.dumps(complete))
    assert status(trials, runs, tmp_path / "spec.yaml") == 0
    assert "# optimizer.beta3 0.6 is the smallest of 0.6, 0.9\n" in (tmp_path / "spec.yaml").read_text()
    assert len(read(tmp_path / "spec.yaml")["cases"]) == 6


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
    told = kept.with_suffix(".md").read_text(encoding="utf-8")
    assert all(f"The best is at an end: {end}.\n" in told for end in at_an_end(read(path), best))


@pytest.mark.parametrize("path", committed(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_method_had_as_many_trials(path: Path) -> None:
    """As many as the specification's title says, and the best rate is not at an end of its grid."""
    spec = read(path)
    trials = [{k: v for k, v in point.items() if spec["base"].get(k) != v} for point in points(spec)]
    best = best_trials(spec, json.loads((path.parent / "results" / f"{path.stem}.json").read_text("utf-8")))
    of_each = [[trial for trial in trials if same_method(chosen, trial)] for chosen in best]
    title = path.read_text(encoding="utf-8").partition("base:")[0].lower()
    told = {"seven trials a": 7, "three rates each": 3}
    assert {len(own) for own in of_each} == {count for words, count in told.items() if words in title}
    for chosen, own in zip(best, of_each, strict=True):
        rates = {trial["optimizer"]["lr"] for trial in own}
        assert min(rates) < chosen["optimizer"]["lr"] < max(rates)
