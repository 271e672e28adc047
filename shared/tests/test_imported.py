"""A class is a method by its path: any optimizer of torch's kind, and any class with options."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_common.errors import ConfigurationError
from finetune_common.slots import find


def groups(model: torch.nn.Module, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Parameter groups as a run builds them."""
    return [{"params": list(model.named_parameters()), "weight_decay": weight_decay}]


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("torch.optim.Adafactor", {"lr": 0.02, "beta2_decay": -0.5, "eps": (None, 1e-2)}),
        ("torch.optim.RMSprop", {"lr": 0.02, "centered": True}),
        ("torch.optim.adamw.AdamW", {"lr": 0.02, "betas": (0.8, 0.95), "amsgrad": True}),
        pytest.param(
            "torch.optim.Muon",
            {"lr": 0.02, "ns_steps": 3},
            marks=pytest.mark.filterwarnings("ignore:.*takes matrices only"),
        ),
    ],
)
def test_steps_are_those_of_the_class(path: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(4, 3, bias=False), torch.nn.Linear(4, 3, bias=False)
    theirs.load_state_dict(ours.state_dict())
    method = find("optimizer", path)
    optimizer = method(method.Options(**options)).build(ours, groups(ours, 0.1))
    kind = getattr(torch.optim, path.rpartition(".")[2])
    reference = kind(theirs.parameters(), weight_decay=0.1, **options)
    for _ in range(3):
        rows = torch.randn(8, 4)
        for model, steps in ((ours, optimizer), (theirs, reference)):
            steps.zero_grad()
            model(rows).square().sum().backward()
            steps.step()
    assert type(optimizer) is kind
    assert torch.equal(ours.weight, theirs.weight)


def test_options_are_the_arguments_that_can_be_written() -> None:
    options = {
        option.name: option for option in dataclasses.fields(find("optimizer", "torch.optim.Adam").Options)
    }
    assert options["betas"].default == (0.9, 0.999)
    assert options["betas"].type == tuple[float, float]  # a tensor cannot be written
    assert "weight_decay" not in options  # of the groups
    assert "params" not in options


class Plain(torch.optim.Optimizer):
    """An optimizer without annotations, whose rate has no default."""

    def __init__(self, params, lr, window=8, hook=print, **others) -> None:
        super().__init__(params, {"lr": lr, "window": window})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                assert isinstance(group["window"], int)
                param -= group["lr"] * param.grad


class NeedsTheLoss(Plain):
    """Runs the loss again."""

    def step(self, closure) -> None: ...


class NeedsALoss(Plain):
    """Is given the loss."""

    def step(self, loss) -> None: ...


class TakesNothing(Plain):
    """Its step has no arguments, and draws random numbers; counts itself in the class."""

    made = 0

    def __init__(self, params, lr=0.1, **others) -> None:
        super().__init__(params, lr)
        TakesNothing.made += 1

    def step(self) -> None:
        super().step(random.random() * np.random.rand() * torch.rand(()))


class Fails(Plain):
    """Fails where it is told to."""

    def __init__(self, params, lr=0.1, where="step") -> None:
        {"step": 1}[where]
        super().__init__(params, lr)

    def step(self, closure=None) -> None:
        raise KeyError("exp_avg")


class NeedsColumns(Plain):
    """Divides by a matrix's columns."""

    def __init__(self, params, lr=0.1) -> None:
        super().__init__(params, lr)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for param in self.param_groups[0]["params"]:
            param -= param.grad / param.shape[1]


class NeedsEvaluation(Plain):
    """Has other weights while it is evaluated."""

    def eval(self) -> None: ...


def test_arguments_without_annotations_or_defaults() -> None:
    method = find("optimizer", f"{__name__}.Plain")
    assert [option.name for option in dataclasses.fields(method.Options)] == ["lr", "window"]
    model = torch.nn.Linear(2, 1)
    optimizer = method(method.Options(lr=0.1, window=4)).build(model, groups(model))
    assert optimizer.param_groups[0]["window"] == 4


@pytest.mark.parametrize(
    ("path", "options", "told"),
    [
        ("torch.optim.Adam", {"lr": -1.0}, "'torch.optim.Adam' refuses: Invalid learning rate: -1.0"),
        (f"{__name__}.Plain", {}, "refuses: .*missing.* 'lr'"),
        ("transformers.Adafactor", {}, "has no learning rate of its own: give one as lr"),
        (
            "transformers.Adafactor",
            {"lr": 1e-3},
            "refuses: Cannot combine manual `lr` and `relative_step=True`",
        ),
        ("torch.optim.SparseAdam", {}, "'torch.optim.SparseAdam' refuses: .*dense"),
        ("torch.optim.AdamW", {"differentiable": True}, "'torch.optim.AdamW' refuses: .*leaf"),
        (f"{__name__}.Fails", {}, "refuses: KeyError: 'exp_avg'"),
        (f"{__name__}.Fails", {"where": "nowhere"}, "refuses: KeyError: 'nowhere'"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_there(
    path: str, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        find("optimizer", path).Options(**options)


@pytest.mark.parametrize(
    ("slot", "path", "told"),
    [
        (
            "optimizer",
            "nowhere.Adam",
            "cannot be imported .No module named 'nowhere'.: give package.module.Class",
        ),
        ("optimizer", "torch.optim.Adamm", "no attribute 'Adamm'.: did you mean 'Adam"),
        ("optimizer", ".Adam", "cannot be imported"),
        (
            "optimizer",
            "torch.nn.Linear",
            "is the class Linear: give a class of .*Method's kind or of torch.optim",
        ),
        ("optimizer", "torch.optim.Optimizer", "is the class Optimizer: give"),
        (
            "gradient",
            "torch.optim.Adam",
            "is the class Adam: give a class of finetune_common.slots.Method's kind$",
        ),
        ("optimizer", "torch.optim.LBFGS", "more than gradients in its step .*'closure'.*choose another"),
        ("optimizer", f"{__name__}.NeedsTheLoss", "more than gradients in its step .*'closure'"),
        ("optimizer", f"{__name__}.NeedsALoss", "more than gradients in its step .*'loss'"),
        ("optimizer", f"{__name__}.NeedsEvaluation", "must be told when evaluation begins"),
    ],
)
def test_what_is_no_method_is_refused(slot: str, path: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        find(slot, path)


def test_weight_decay_that_would_have_no_effect_is_refused() -> None:
    method, model = find("optimizer", "torch.optim.Rprop"), torch.nn.Linear(2, 1)
    with pytest.raises(
        ConfigurationError, match=r"'torch.optim.Rprop' has no weight decay: give --weight-decay 0"
    ):
        method(method.Options()).build(model, groups(model, 0.01))
    method(method.Options()).build(model, groups(model))


def test_a_step_without_arguments_is_given_none() -> None:
    method, model = find("optimizer", f"{__name__}.TakesNothing"), torch.nn.Linear(2, 1)
    optimizer = method(method.Options()).build(model, groups(model))
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step(None)
    schedule.step()
    assert not torch.equal(model.weight, before)


def test_a_trial_leaves_no_trace() -> None:
    method = find("optimizer", f"{__name__}.TakesNothing")
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    made = TakesNothing.made
    method(method.Options())
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert TakesNothing.made == made


def test_an_optimizer_of_matrices_says_so_before_a_model_is_there() -> None:
    method, model = find("optimizer", f"{__name__}.NeedsColumns"), torch.nn.Linear(2, 1)
    told = "refuses: tuple index out of range: it takes matrices only"
    with pytest.warns(UserWarning, match=told):
        built = method(method.Options())
    with pytest.raises(ConfigurationError, match=told):
        built.build(model, groups(model))
    assert built.build(model, groups(torch.nn.Linear(2, 1, bias=False)))


def test_a_class_with_options_fills_any_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_noise.py").write_text(
        "from dataclasses import dataclass\n\n\n"
        "@dataclass(frozen=True)\nclass Options:\n    size: float = 0.1\n\n\n"
        "class Noise:\n    name = 'noise'\n    Options = Options\n"
        "    def __init__(self, options): ...\n    def attach(self, optimizer, accumulate): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find("gradient", "my_noise.Noise").Options().size == 0.1
    with pytest.raises(ConfigurationError, match=r"has no build\(\): see finetune_common.slots.Optimizer"):
        find("optimizer", "my_noise.Noise")
