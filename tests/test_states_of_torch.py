"""Saved state of torch's optimizers: the same algorithm goes on, or one line names what differs."""

import copy
import inspect
from functools import partial

import pytest
import torch
from torch import nn

from clipped_adaptive import ClippedAdaGrad, ClippedAdam, ClippedSGD
from finetune_common.errors import ConfigurationError
from sensitivity_lr import SageAdamax, SageAdamW, SageSGD

CLASSES = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
}
CHANGES = {
    "weight_decay": 0.3,
    "amsgrad": True,
    "decoupled_weight_decay": True,
    "maximize": True,
    "momentum": 0.9,
    "dampening": 0.5,
    "nesterov": True,
    "lr_decay": 0.1,
    "initial_accumulator_value": 0.5,
    "foreach": True,
    "centered": True,
}
"""Settings that are changed one by one; decay beside each of them, and momentum where it is needed."""


def settings_of(cls):
    known = inspect.signature(cls).parameters
    yield {}
    for name, value in CHANGES.items():
        if name in known:
            changed = {name: value}
            if "momentum" in known and name in ("dampening", "nesterov", "weight_decay"):
                changed["momentum"] = 0.9
            if name == "nesterov":
                changed["dampening"] = 0
            if name == "decoupled_weight_decay":
                changed["weight_decay"] = 0.3
            yield {key: value for key, value in changed.items() if key in known}


CASES = [(name, settings) for name, cls in CLASSES.items() for settings in settings_of(cls)]


def plain(cls, params, **settings):
    """An optimizer of ours that does what torch's of its kind does."""
    if cls.__name__.startswith("Clipped"):
        return cls(params, lr=0.5, clip="none", **settings)
    return cls([{"params": params, "sage": False}], lr=0.5, **settings)


def step(optimizer, param, size):
    param.grad = torch.sin(size + torch.arange(6.0)).view(3, 2)
    if isinstance(optimizer, torch.optim.SparseAdam):
        param.grad = param.grad.to_sparse()
    optimizer.step(*([lambda: param.sum()] if isinstance(optimizer, torch.optim.LBFGS) else []))


def trained(name, settings):
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(3, 2))
    optimizer = CLASSES[name]([param], lr=0.05, **settings)
    for size in (1.0, 2.0, 3.0):
        step(optimizer, param, size)
    return param, optimizer


OURS = {
    ClippedAdam: ("Adam", "AdamW"),
    SageAdamW: ("Adam", "AdamW"),
    ClippedAdaGrad: ("Adagrad",),
    SageAdamax: ("Adamax",),
    ClippedSGD: ("SGD",),
    SageSGD: ("SGD",),
}
"""Class → torch's of its kind."""
SAME = [{}, {"maximize": True}, {"momentum": 0.9}, {"initial_accumulator_value": 0.5}, {"foreach": True}]
"""Settings with which torch's optimizer of the same kind is the same algorithm."""


def is_the_same(name, settings):
    decoupled = settings.get("decoupled_weight_decay") or (name == "AdamW" and "amsgrad" not in settings)
    return settings in SAME or decoupled or settings.get("nesterov", False)


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
@pytest.mark.parametrize("cls", OURS)
def test_the_next_step_is_torchs_or_one_line_says_which_setting_differs(cls, name, settings):
    param, optimizer = trained(name, settings)
    saved = copy.deepcopy(optimizer.state_dict())
    copied = nn.Parameter(param.detach().clone())
    ours = plain(cls, [copied])
    before = str(ours.state_dict())
    if name in OURS[cls] and is_the_same(name, settings):
        ours.load_state_dict(saved)
        step(ours, copied, 4.0)
        step(optimizer, param, 4.0)
        torch.testing.assert_close(copied, param, rtol=1e-6, atol=1e-7)
    else:
        with pytest.raises(ConfigurationError) as refusal:
            ours.load_state_dict(saved)
        words = str(refusal.value).replace("=", " ").replace(",", " ").split()
        torchs = inspect.signature(CLASSES[OURS[cls][0]]).parameters
        assert set(words) & {*saved["param_groups"][0], *torchs}, refusal.value
        assert "\n" not in str(refusal.value)
        assert str(ours.state_dict()) == before


@pytest.mark.parametrize(("written", "read"), [(SageAdamW, SageAdamax), (SageAdamax, SageAdamW)])
def test_state_of_another_of_our_classes_with_the_same_settings_is_refused(written, read):
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = written([param], lr=0.1)
    step(optimizer, param, 1.0)
    with pytest.raises(ConfigurationError, match=r"exp_avg_sq|exp_inf"):
        read([param], lr=0.1).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("given", [True, False])
def test_one_second_moment_is_no_start_for_many_nor_many_for_one(given):
    param = nn.Parameter(torch.ones(3, 2))
    optimizer = ClippedAdam([param], lr=0.1, norm=given)
    step(optimizer, param, 1.0)
    with pytest.raises(ConfigurationError, match="second_moment" if given else "exp_avg_sq"):
        ClippedAdam([param], lr=0.1, norm=not given).load_state_dict(optimizer.state_dict())
    with pytest.raises(ConfigurationError, match="exp_avg_sq"):
        ClippedAdam([param], lr=0.1, norm=True).load_state_dict(trained("AdamW", {})[1].state_dict())


def test_a_schedulers_bounds_and_what_a_user_wrote_in_own_groups_are_loaded():
    param, _ = trained("AdamW", {})
    theirs = torch.optim.AdamW([param], lr=0.05)
    torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=4)
    step(theirs, param, 1.0)
    ClippedAdam([param], lr=0.5, clip="none").load_state_dict(theirs.state_dict())
    own = ClippedAdam([{"params": [param], "part": "body"}], lr=0.5)
    again = ClippedAdam([param], lr=0.1)
    again.load_state_dict(own.state_dict())
    assert (again.param_groups[0]["part"], again.param_groups[0]["lr"]) == ("body", 0.5)


def test_what_a_saved_group_does_not_say_stays_as_the_group_has_it():
    """A state of torch's AdamW says nothing of `sage`, nor of the layers that are clipped together."""
    param, theirs = trained("AdamW", {})
    build = partial(SageAdamW, lr=0.5)
    for optimizer, setting in (
        (build([{"params": [param], "sage": False}]), "sage"),
        (ClippedAdam([{"params": [param], "layer": "first"}], lr=0.5, clip="layer"), "layer"),
    ):
        chosen = optimizer.param_groups[0][setting]
        step(optimizer, param, 1.0)
        optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
        assert optimizer.param_groups[0][setting] == chosen
        assert optimizer.param_groups[0]["lr"] == 0.05
        assert optimizer.param_groups[0].get("steps", 0) == 0
