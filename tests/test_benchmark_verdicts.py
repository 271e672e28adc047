"""When is a published number reproduced? Checked against worked examples and a simulation of the protocol."""

import doctest
import importlib
import math

import numpy as np
import pytest

import collect
from glue_harness.report.published import Line, interval, verdict
from reproduce import costs, published
from reproduce.catalogue import find
from reproduce.published import comparison, table

INSIDE = (0.80, 0.90)


@pytest.mark.parametrize(
    ("published", "ours", "around", "options", "said"),
    [
        (0.85, 0.86, INSIDE, {}, "reproduced"),
        (0.91, 0.86, INSIDE, {}, "not reproduced"),
        (0.91, 0.86, INSIDE, {"reading": 0.02}, "reproduced"),
        (None, 0.86, INSIDE, {}, "no published number"),
        (0.85, 0.86, INSIDE, {"comparable": False}, "not comparable at this scale"),
        (0.85, 0.86, INSIDE, {"note": "another GPU"}, "not comparable: another GPU"),
        (0.85, None, None, {}, "not run"),
        (0.85, 0.86, None, {}, "one run: not judged"),
    ],
)
def test_the_first_rule_that_applies_decides(published, ours, around, options, said):
    assert verdict(published, ours, around, **options) == said


@pytest.mark.parametrize(("runs", "published_runs", "median"), [(3, 1, False), (5, 3, False), (5, 5, True)])
def test_an_honest_number_lies_in_the_interval_in_95_of_100_cases(runs, published_runs, median):
    generator = np.random.default_rng(0)
    middle = np.median if median else np.mean
    hits = 0
    for _ in range(2000):
        ours, theirs = generator.normal(size=runs), generator.normal(size=published_runs)
        low, high = interval(list(ours), float(middle(ours)), published_runs, median)
        hits += low <= middle(theirs) <= high
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_our_own_interval_is_that_of_a_mean():
    low, high = interval([1.0, 2.0, 3.0], 2.0, math.inf, median=False)
    assert high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert 2.0 - low == pytest.approx(high - 2.0)


def result(task, model, gradient, seed, **metrics):
    """A kept result of `agni.glue`, as much of it as a comparison reads."""
    primary = next(iter(metrics))
    return {
        "task": task,
        "model": model,
        "seed": seed,
        "primary": primary,
        "metrics": {"last": metrics, "best": dict.fromkeys(metrics, 9.0)},
        "settings": {"task": task, "model": model, "seed": seed},
        "slots": {
            "adaptation": {"name": "full"},
            "activation": {"name": "none"},
            "gradient": gradient,
            "optimizer": {"name": "adamw", "lr": 2e-5},
        },
        "steps": 10,
        "seconds": {"forward": 5.0, "evaluation": 50.0},
        "saved_activation_bytes": 1,
        "examples_per_second": 1.0,
        "peak_memory_bytes": 1,
        "parameters": {"trainable": 1},
        "folder": f"{task}-{model}-{gradient}-{seed}",
    }


SCORES = (0.8333, 0.8382, 0.8407, 0.8358, 0.8456)


def test_a_published_median_is_compared_with_ours_at_the_paper_scale():
    runs = [
        result("mrpc", "bert-base-uncased", [], 41 + n, accuracy=score, f1=score + 0.05)
        for n, score in enumerate(SCORES)
    ]
    lines = comparison(find("agni.glue"), "paper", runs)
    told = {(line.model, line.setting, line.metric): line for line in lines if line.task == "mrpc"}
    plain = told["bert-base-uncased", "AdamW", "acc"]
    assert (plain.published, plain.ours, plain.verdict) == (0.8382, 0.8382, "reproduced")
    assert told["bert-base-uncased", "AdamW", "f1"].ours == pytest.approx(0.8882)
    assert told["bert-base-uncased", "AdamW+AGNI", "acc"].verdict == "not run"
    assert told["t5-base", "AdamW", "acc"].verdict == "not run"


def test_a_small_scale_is_never_a_reproduction():
    runs = [result("sst2", "small", [], seed, accuracy=0.9232) for seed in (41, 42, 43)]
    lines = comparison(find("agni.glue"), "cpu", runs)
    assert {line.model for line in lines} >= {"bert-base-uncased (ours: small)", "t5-base (ours: small)"}
    assert {line.verdict for line in lines} == {"not comparable at this scale"}


def test_ours_has_the_published_unit():
    [run] = [result("sst2", "bert-large-cased", [], 1, accuracy=0.9)]
    run["metrics"]["best"] = run["metrics"]["last"]
    lines = comparison(find("gact.accuracy"), "paper", [run])
    assert {(line.metric, line.ours) for line in lines if line.ours is not None} == {("acc", 90.0)}


def test_the_best_rate_of_each_seed_is_paired_with_the_best_of_the_baseline():
    def run(level, lr, seed, score):
        made = result("sst2", "small", [], seed, accuracy=score)
        made["metrics"]["best"] = made["metrics"]["last"]
        made["slots"] |= {"activation": level, "optimizer": {"name": "adamw", "lr": lr}}
        return made | {"folder": f"{level['name']}-{lr}-{seed}"}

    none, compress = {"name": "none"}, {"name": "compress", "level": "L2"}
    runs = [run(none, lr, seed, 0.80 + lr) for lr in (0.01, 0.02) for seed in (1, 2)]
    runs += [run(compress, lr, seed, 0.80 - lr) for lr in (0.01, 0.02) for seed in (1, 2)]
    told = collect.paired_table(runs, find("gact.accuracy"))
    [row] = [line for line in told.splitlines() if "| sst2 |" in line]
    assert "| 2 | -0.0300 |" in row
    assert "Each seed's best learning rate" in told


@pytest.mark.parametrize(
    ("name", "scale", "around", "said"),
    [
        ("clipped.quadratic", "paper", None, "Ours: median over the repeats of one seed."),
        ("clipped.images", "paper", INSIDE, "with as many runs as are behind the published number (5)."),
        ("agni.variance", "cpu", None, "Ours: one run each; after the last step."),
        (
            "agni.variance",
            "cpu",
            INSIDE,
            "all its metrics; after the last step; 95 % interval of our number.",
        ),
    ],
)
def test_a_footnote_says_what_is_true_of_the_numbers_above_it(name, scale, around, said):
    line = Line("mrpc", "small", "adamw", "accuracy", None, 0.85, around, "no published number")
    own, _, differs = published._footnote([line], find(name), scale).partition(
        " Differs from the released code in: "
    )
    assert own.endswith(said)
    assert bool(differs) == (scale == "paper")


def test_costs_have_a_verdict_and_the_bytes_of_the_timed_step():
    agni = [{"name": "agni", "eta": 0.01}]
    runs = [
        result("sst2", "small", gradient, seed, accuracy=0.80 + 0.01 * bool(gradient))
        for gradient in ([], agni)
        for seed in (1, 2)
    ]
    timed = [{"task": "sst2", "slots": run["slots"], "seconds": {"step": 0.5}} for run in runs[1:3]]
    told = costs.table(runs, [timed[0], timed[1] | {"saved_bytes": 3 * 2**20}]).splitlines()
    [plain] = [line for line in told if "| adamw |" in line]
    [own] = [line for line in told if "| adamw + agni |" in line]
    assert plain.endswith("| – | – | 1 | – | 500 ms, 1.00x |")
    assert "+0.0100" in own
    assert own.endswith("| undecided | 1 | 3 MiB | 500 ms, 1.00x |")


def test_costs_are_equal_only_within_a_margin():
    agni = [{"name": "agni", "eta": 0.01}]
    runs = [
        result("sst2", "small", gradient, seed, accuracy=0.80 + 0.01 * (seed % 3) + 0.001 * bool(gradient))
        for gradient in ([], agni)
        for seed in range(1, 6)
    ]
    for margin, told in ((0.005, "equal within ±0.005"), (0.0005, "undecided"), (None, "undecided")):
        [own] = [line for line in costs.table(runs, margin=margin).splitlines() if "| adamw + agni |" in line]
        assert f"| {told} | 1 |" in own.replace("**", "")


def test_ways_of_a_grid_without_published_numbers_are_compared_with_none():
    found = {"spec": {"ways": {"adam": {"lr": [0.1]}}}, "runs": {"adam, lr 0.1": {"0": {}}}}
    assert comparison(find("clipped.image-levels"), "smoke", found) == []


def test_percents_are_compared_as_percents():
    layers = find("peft.layers")
    target = [line for line in comparison(layers, "paper", []) if line.task == "mrpc"]
    assert len(target) == 84
    unknown = "not comparable: the published rate is not known"
    assert {line.verdict for line in target} == {"not run", unknown}
    assert "88.51" in table(layers, "paper", [])


@pytest.mark.parametrize("name", ["listing", "scales", "speed"])
def test_examples_in_docstrings_of_the_benchmarks_run(name):
    failed, attempted = doctest.testmod(importlib.import_module(f"reproduce.{name}"))
    assert attempted
    assert not failed
