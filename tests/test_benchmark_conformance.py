"""Runs of the paper scale have the released settings, or the catalogue says what differs and why."""

import doctest
from dataclasses import replace

import pytest
import yaml

from reproduce import conformance, published
from reproduce.catalogue import BENCHMARKS, catalogue, find

RELEASED = [name for name, benchmark in catalogue().items() if conformance.released(benchmark)]


def test_nineteen_released_experiments_are_known():
    known = {
        f"{path.parent.name}.{name}"
        for path in BENCHMARKS.glob("*/released.yaml")
        for name in yaml.safe_load(path.read_text(encoding="utf-8")).keys() - {"method", "paper"}
    }
    assert known == set(RELEASED)
    assert len(known) == 19
    assert all("paper" in find(name).scales for name in known)


@pytest.mark.parametrize("name", RELEASED)
def test_every_difference_is_declared_and_every_declaration_is_one(name):
    benchmark = find(name)
    assert set(conformance.differences(benchmark)) == set(benchmark.differs)
    source = conformance.released(benchmark)["source"]
    assert len(source["commit"]) == 40
    assert {"repository", "files"} <= source.keys()


CHANGED = [
    ("agni.glue", {"base": {"head_seed": None}}, "head.shared_by_seeds"),
    ("agni.optimizers", {"cases": [{"optimizer": {"name": "sgd", "lr": 2e-6}}]}, "sgd"),
    ("clipped.rte", {"base": {"model_config": {"classifier_dropout_prob": 0.0}}}, "dropout.classifier"),
    ("clipped.rte", {"base": {"max_length": 128}}, "max_length"),
    ("clipped.qnli", {"base": {"decay_all": False}}, "decay_all"),
    ("sage.mnli-adamax", {"base": {"head": None}}, "head.pooler"),
    ("sage.mnli-adamax", {"base": {"schedule": "linear"}}, "schedule"),
    ("gact.accuracy", {"where": []}, "MRPC's selection"),
    ("peft.main-table", {"base": {"load_best": False}}, "load_best"),
]


@pytest.mark.parametrize(("name", "change", "found"), CHANGED)
def test_a_setting_that_is_changed_is_found(name, change, found):
    benchmark = find(name)
    scale = benchmark.at("paper")
    altered = replace(scale, change={**scale.change, **change})
    other = replace(benchmark, name=name, scales={**benchmark.scales, "paper": altered})
    told = conformance.differences.__wrapped__(other)
    assert found in told
    assert found not in benchmark.differs


def test_the_page_of_a_method_shows_every_difference():
    pages = [
        path.read_text(encoding="utf-8") for path in (BENCHMARKS.parent / "docs" / "methods").glob("*.md")
    ]
    for work in sorted({find(name).work for name in RELEASED}):
        assert sum(f'--8<-- "benchmarks/{work}/differences.md"' in page for page in pages) == 1
        rows = conformance.method_table(work).splitlines()[2:]
        names = {row.split(" | ")[0].removeprefix("| ") for row in rows}
        own = [find(name) for name in RELEASED if find(name).work == work]
        assert {name for benchmark in own for name in conformance.differences(benchmark)} <= names
        assert any(row.endswith("| the method |") for row in rows)
        assert all(row.count(" | ") == 3 for row in rows)


def test_a_number_is_not_judged_beside_an_undeclared_difference():
    benchmark = find("agni.glue")
    [row, *_] = [t for t in published.targets("agni") if t.benchmark == "agni.glue"]
    assert not conformance.hindrance(benchmark, row.run)
    silent = replace(benchmark, differs={})
    assert "batch_size" in conformance.hindrance(silent, row.run)


def test_a_difference_that_matters_says_so_of_its_own_runs():
    benchmark = find("peft.main-table")
    full = {"model": "bert-base-uncased", "adaptation": {"name": "full"}}
    assert "head" in conformance.hindrance(benchmark, full)
    assert not conformance.hindrance(benchmark, {**full, "model": "roberta-base"})
    lines = published.comparison(find("gact.two-bit"), "paper", [])
    told = {line.verdict for line in lines if line.published}
    assert "not comparable: their settings are not known" in told
    assert all(verdict.startswith("not comparable: ") for verdict in told)


@pytest.fixture
def images(load_script):
    return load_script(BENCHMARKS / "clipped" / "images.py")


def test_images_are_cropped_and_mirrored_at_random(images):
    """Every output is a window of the framed image, or its mirror image, and windows differ."""
    import torch

    x = torch.randn(64, 3, 6, 6)
    black = torch.tensor([-1.0, -2.0, -3.0]).view(3, 1, 1)
    made = images.Images.__new__(images.Images)
    made.train, made.augment, made.black = (x, torch.arange(64)), {"crop": 2, "flip": True}, black
    [(out, rows)] = made.epoch(64, torch.Generator().manual_seed(0))
    framed = black.expand(64, 3, 10, 10).clone()
    framed[:, :, 2:8, 2:8] = x
    places = set()
    for image, row in zip(out, rows, strict=True):
        for top in range(5):
            for left in range(5):
                window = framed[row, :, top : top + 6, left : left + 6]
                for mirrored in (False, True):
                    if torch.equal(image, window.flip(-1) if mirrored else window):
                        places.add((top, left, mirrored))
                        break
    assert len(places) > 20
    assert {mirrored for *_, mirrored in places} == {False, True}


def test_layers_of_the_resnet_are_eleven_and_all_decay(images):
    spec = find("clipped.images").spec("paper")
    torch = images.torch
    fake = images.Images.__new__(images.Images)
    fake.train = fake.test = (torch.zeros(2, 3, 32, 32), torch.tensor([0, 9]))
    with torch.device("meta"):
        model = images.resnet({**spec, "model": None}, fake)
    optimizer = images.build(model, spec["ways"]["adam layer"], spec["weight_decay"])
    assert len({group["layer"] for group in optimizer.param_groups}) == 11
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert total == sum(p.numel() for p in model.parameters())


def test_levels_and_rates_in_lists_are_ways_of_their_own(images):
    ways = images.expanded({"adam": {"lr": [0.1, 0.2], "max_norm": [1.0, 2.5], "clip": "local"}})
    assert list(ways)[-1] == "adam, lr 0.2, max_norm 2.5"
    assert len(ways) == 4
    assert ways["adam, lr 0.1, max_norm 2.5"] == {"lr": 0.1, "max_norm": 2.5, "clip": "local"}


def test_noise_at_the_start_is_that_of_many_heads(images):
    """Heads drawn anew for each gradient add to the distances; afterwards the model is as before."""
    torch = images.torch
    torch.manual_seed(0)
    data = images.Images.__new__(images.Images)
    data.train = data.test = (torch.randn(32, 1, 8, 8), torch.arange(32) % 10)
    model = images.resnet({"model": None}, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    noise = {"batch_size": 16, "n": 8, "seed": 0}
    same = images.sampled(model, data, noise, start=True)
    anew = images.sampled(model, data, {**noise, "redraw": True}, start=True)
    assert anew["mean"] > same["mean"]
    assert images.sampled(model, data, {**noise, "redraw": True}, start=False) == same
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_speeds_over_batches_are_drawn_where_they_fit(load_script, tmp_path):
    script = load_script(BENCHMARKS / "gact" / "capacity.py")
    assert not doctest.testmod(script).failed
    script.draw({"m": {"L1": [(8, 5.0), (64, 9.0)], "FP32": [(8, 6.0)]}}, tmp_path / "throughput.png")
    assert (tmp_path / "throughput.png").stat().st_size > 1000
