"""A class is a method by its path: any optimizer of torch's kind, and any class with options."""

import dataclasses
from pathlib import Path
from typing import Any

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
        ("torch.optim.Muon", {"lr": 0.02, "ns_steps": 3}),
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
        ("optimizer", "torch.optim.LBFGS", "calls the loss function within its step"),
        ("optimizer", f"{__name__}.NeedsTheLoss", "calls the loss function within its step"),
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
