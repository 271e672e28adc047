"""Every published number that was verified has a run that would produce it, or a line that says why not."""

import csv
import itertools
from functools import cache

import pytest

from glue_harness.config.fields import RunConfig
from glue_harness.report.published import covers
from glue_harness.sweep.scales import changed
from reproduce.catalogue import BENCHMARKS, catalogue, find
from reproduce.published import targets
from reproduce.scales import merged, points, settings

WORKS = sorted(path.parent.name for path in BENCHMARKS.glob("*/targets.csv"))
ROWS = {"agni": 144, "clipped": 168, "gact": 133, "peft": 359, "sage": 78}
UNKNOWN = {"sage": 64}


@cache
def runs_at_paper_scale(name):
    """The settings of every run; seeds apart, which are looked at as an axis."""
    benchmark = find(name)
    spec = benchmark.spec("paper")
    if benchmark.script:
        return [spec]
    grid = dict(spec.get("grid") or {})
    seeds = grid.pop("seed", [spec.get("base", {}).get("seed", 42)])
    return [{**settings(point), "seed": seeds} for point in points({**spec, "grid": grid})]


def test_every_work_has_its_published_numbers():
    assert {work: len(targets(work)) for work in WORKS} == ROWS


@pytest.mark.parametrize("work", WORKS)
def test_a_verified_number_has_a_run_at_paper_scale_or_a_reason(work):
    without = [
        (target.table, target.method, target.model, target.task, target.metric)
        for target in targets(work)
        if target.verified
        and not (target.note if not target.benchmark else _produced(target.benchmark, target.run))
    ]
    assert not without


def _produced(benchmark, run):
    return any(covers(run, found) for found in runs_at_paper_scale(benchmark))


@pytest.mark.parametrize("work", WORKS)
def test_a_judged_number_says_which_of_ours_it_is(work):
    judged = [t for t in targets(work) if t.benchmark and not t.note and t.value is not None]
    assert all(target.key and target.benchmark in catalogue() for target in judged)


@pytest.mark.parametrize("work", WORKS)
def test_an_unverified_number_is_never_judged(work):
    guessed = [t for t in targets(work) if not t.verified and t.value is not None]
    assert all(target.note for target in guessed)
    assert sum(t.value is None for t in targets(work)) == UNKNOWN.get(work, 0)


@pytest.mark.parametrize("work", WORKS)
def test_targets_have_one_form(work):
    with (BENCHMARKS / work / "targets.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            assert row["source"]
            assert row["verified"] in ("True", "False")
            assert None not in row.values()


def test_sage_is_compared_on_all_tasks_with_both_models():
    wanted = itertools.product(
        ("rte", "mrpc", "cola", "sst2", "stsb", "qnli", "qqp", "mnli"),
        ("bert-base-uncased", "roberta-base"),
        ("adamax", "sage-adamax", "adamw", "sage-adamw"),
    )
    runs = runs_at_paper_scale("sage.glue")
    for task, model, optimizer in wanted:
        pattern = {"task": task, "model": model, "optimizer": {"name": optimizer}}
        assert any(covers(pattern, run) for run in runs), pattern


def test_a_value_outside_a_list_means_one_of_it():
    assert covers({"layers": 5}, {"layers": [3, 5]})
    assert not covers({"layers": [5]}, {"layers": [3, 5]})
    assert not covers({"adaptation": {"rank": 2}}, {"adaptation": {"name": "lora", "rank": 1}})
    assert not covers({"missing": None}, {"task": "rte"})


def test_a_scale_sets_options_on_axes_and_in_cases():
    spec = {
        "base": {"epochs": 3},
        "grid": {"task": ["rte", "mrpc"], "seed": [1, 2]},
        "cases": [
            {"optimizer": {"name": "sgd", "lr": 1.0}, "epochs": 5},
            {"optimizer": {"name": "sgd", "lr": 2.0}, "epochs": 5},
            {"optimizer": {"name": "adamw"}, "epochs": 5},
        ],
    }
    small = changed(spec, {"one_of_each": True, "base": {"task": "sst2", "epochs": 1}})
    assert [(p["task"], p["epochs"], p["optimizer"], p["seed"]) for p in points(small)] == [
        ("sst2", 1, {"name": "sgd", "lr": 1.0}, 1),
        ("sst2", 1, {"name": "adamw"}, 1),
    ]


def test_a_case_overrides_the_defaults_of_a_scale():
    spec = {"base": {"epochs": 10}, "cases": [{"optimizer": "sgd"}, {"optimizer": "adamw", "epochs": 3}]}
    assert [p["epochs"] for p in points(changed(spec, {"defaults": {"epochs": 5}}))] == [5, 3]


def test_a_scale_of_a_script_keeps_what_it_does_not_name():
    assert merged({"a": {"b": 1, "c": 2}, "d": [1], "e": 0}, {"a": {"b": 3}, "d": [], "e": None}) == {
        "a": {"b": 3, "c": 2},
        "d": [],
    }


SWEEPS = [(b.name, scale) for b in catalogue().values() if not b.script for scale in b.scales]


@pytest.mark.parametrize(("name", "scale"), SWEEPS)
def test_every_run_of_every_scale_is_legal(name, scale):
    runs = [settings(point) for point in points(find(name).spec(scale))]
    assert runs
    for run in runs:
        RunConfig(**{**run, "output_dir": "none"})
