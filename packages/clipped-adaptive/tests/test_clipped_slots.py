"""The entry points: found by name, options without torch, built as the classes are."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import clipped_adaptive
from clipped_adaptive import RunningQuantile
from clipped_adaptive.clips import CLIPS
from finetune_common.errors import ConfigurationError
from finetune_common.slots import find

OPTIMIZERS = ("clipped-adam", "clipped-adagrad", "clipped-sgd")


def groups(model):
    named = list(model.named_parameters())
    return [
        {"params": [pair for pair in named if pair[1].dim() >= 2], "weight_decay": 0.1},
        {"params": [pair for pair in named if pair[1].dim() < 2], "weight_decay": 0.0, "lr": 0.5},
    ]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_reach_the_optimizer(name):
    method = find("optimizer", name)
    options = method.Options(lr=0.25, clip="global", max_norm=2.0)
    optimizer = method(options).build(nn.Linear(2, 2), groups(nn.Linear(2, 2)))
    assert isinstance(optimizer, getattr(clipped_adaptive, method.optimizer))
    assert (optimizer.clip, optimizer.max_norm) == ("global", 2.0)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [(0.25, 0.1), (0.5, 0.0)]


def test_the_forms_of_adam_and_adagrad_reach_the_optimizer():
    adam = find("optimizer", "clipped-adam")
    forms = {"delay": True, "eta": 0.5, "initial_second_moment": 1e-5, "bias_correction": False}
    optimizer = adam(adam.Options(norm=True, **forms)).build(nn.Linear(2, 2), groups(nn.Linear(2, 2)))
    assert optimizer.norm
    assert forms.items() <= optimizer.param_groups[1].items()
    adagrad = find("optimizer", "clipped-adagrad")
    forms = {"delay": True, "eta": 0.5, "initial_accumulator": 9.0}
    optimizer = adagrad(adagrad.Options(**forms)).build(nn.Linear(2, 2), groups(nn.Linear(2, 2)))
    assert forms.items() <= optimizer.param_groups[0].items()


def test_a_quantile_takes_the_place_of_the_level():
    method = find("optimizer", "clipped-adam")
    optimizer = method(method.Options(quantile=0.5)).build(nn.Linear(2, 2), groups(nn.Linear(2, 2)))
    assert optimizer.max_norm == RunningQuantile(0.5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_level_is_told_where_it_is_fixed(name):
    method = find("optimizer", name)
    assert [method(method.Options(clip=clip, max_norm=0.5)).clips_at for clip in CLIPS] == [
        None if clip == "none" else 0.5 for clip in CLIPS
    ]
    assert method(method.Options(quantile=0.5)).clips_at is None


def test_layers_are_found_in_the_model():
    """Matrices and biases come in two groups, and are clipped together layer by layer."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    body = nn.ModuleDict({"layers": model})
    method = find("optimizer", "clipped-sgd")
    optimizer = method(method.Options(lr=1.0, momentum=0.0, clip="layer")).build(body, groups(body))
    assert {g["layer"] for g in optimizer.param_groups} == {"layers.0", "layers.1"}
    assert sorted(g["weight_decay"] for g in optimizer.param_groups) == [0.0, 0.0, 0.1, 0.1]
    for param in model.parameters():
        param.grad = torch.full_like(param, 5.0)
    optimizer.step()
    assert optimizer.clip_report().norm_after == pytest.approx(2**0.5)


BAD = [
    ("clipped-adam", {"lr": -1.0}, "lr"),
    ("clipped-adam", {"betas": (0.9, 1.0)}, "betas"),
    ("clipped-adam", {"eps": -1.0}, "eps"),
    ("clipped-adam", {"clip": "lokal"}, "clip"),
    ("clipped-adam", {"max_norm": 0.0}, "max_norm"),
    ("clipped-adam", {"quantile": 1.1}, "quantile"),
    ("clipped-adam", {"quantile": 0.5, "clip": "elementwise"}, "needs norms"),
    ("clipped-adam", {"delay": True}, "initial_second_moment=1e-5"),
    ("clipped-adam", {"eta": 0.0}, "eta"),
    ("clipped-adagrad", {"delay": True}, "initial_accumulator=1e-5"),
    ("clipped-adagrad", {"initial_accumulator": -1.0}, "initial_accumulator"),
    ("clipped-sgd", {"momentum": 1.0}, "momentum"),
    ("clipped-sgd", {"momentum": 0.0, "nesterov": True}, "momentum"),
]


@pytest.mark.parametrize(("name", "options", "named"), BAD)
def test_bad_options_are_refused_before_torch_is_needed(name, options, named):
    with pytest.raises(ConfigurationError, match=named):
        find("optimizer", name).Options(**options)


def test_the_monitor_attaches_to_a_model():
    method = find("monitor", "tails")
    handle = method(method.Options(every=3, batches=9)).attach(nn.Linear(2, 2), None)
    assert handle.every == 3
    assert handle.on_step(3) == {}
    handle.remove()
    with pytest.raises(ConfigurationError, match="batches"):
        method.Options(batches=2)


def test_options_and_names_need_no_torch():
    code = "import clipped_adaptive, clipped_adaptive.slots, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_using_the_optimizers_needs_only_torch():
    code = (
        "import clipped_adaptive, sys; clipped_adaptive.ClippedAdam, clipped_adaptive.heavy_tails.hill;"
        "assert not {'matplotlib', 'scipy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", clipped_adaptive.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(clipped_adaptive, name)
    assert name == "ALGORITHMS" or len(value.__doc__) > 40
