"""A call that does not fit is answered in one line: the public name, the nearest argument, no whole model."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune_common.arguments import ArgumentError, explain_arguments
from finetune_common.errors import ConfigurationError, shown

PACKAGES = sorted(
    place.parent.name for place in Path(__file__).parents[1].glob("packages/*/src/*/__init__.py")
)


def _public() -> dict[str, Any]:
    """Every public class and function of the packages that takes settings."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if callable(value) and not isinstance(value, type(nn)):
                found[f"{package}.{name}"] = value
    return found


PUBLIC = _public()
NOT_CALLED_BY_USERS = {"Quantized", "ClipReport", "CompileOptions"}
TAKING = {name: value for name, value in PUBLIC.items() if name.split(".")[1] not in NOT_CALLED_BY_USERS}
EXPLAINED = [
    name
    for name, value in TAKING.items()
    if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(value).parameters.values())
]


def _model() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)))


def _settings(target: Any) -> list[str]:
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


@pytest.mark.parametrize("name", EXPLAINED)
def test_a_misspelt_argument_gets_the_nearest_name(name: str) -> None:
    setting = max(_settings(TAKING[name]), key=len)
    misspelt = setting[:1] + setting[2:] if len(setting) > 3 else setting + "s"
    with pytest.raises(TypeError) as refusal:
        TAKING[name](**{misspelt: 1})
    message = str(refusal.value)
    assert message.startswith(f"{name.split('.')[1]} has no argument {misspelt}: ")
    assert "\n" not in message
    assert setting in message


@pytest.mark.parametrize("name", [name for name, value in TAKING.items() if _settings(value)])
def test_a_model_in_the_wrong_place_is_not_printed(name: str) -> None:
    target, model = TAKING[name], _model()
    required = [
        p.name for p in inspect.signature(target).parameters.values() if p.default is p.empty and p.kind < 2
    ]
    for setting in _settings(target):
        given = {argument: [] for argument in required} | {setting: model}
        try:
            target(**given)
        except Exception as error:
            message = str(error)
            assert "\n" not in message, (setting, message)
            assert len(message) < 400, (setting, message)


@pytest.mark.parametrize(
    ("given", "meant"), [("r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout"), ("rnk", "rank")]
)
def test_names_of_other_libraries_lead_to_ours(given: str, meant: str) -> None:
    from parameter_efficient import LoRA

    with pytest.raises(
        ConfigurationError, match=f"^LoRA has no argument {given}: did you mean '{meant}'\\?$"
    ):
        LoRA(**{given: 4})


def test_the_order_of_arguments_is_noticed() -> None:
    from activation_compression import compress_activations
    from parameter_efficient import LoRA, adapt, save_adaptation

    model: Any = _model()
    with pytest.raises(ConfigurationError, match=r"wrong order: call adapt\(model, config\)"):
        adapt(LoRA(), model)  # type: ignore[type-var]
    with pytest.raises(ConfigurationError, match="wrong order"):
        compress_activations("L1", model)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"call save_adaptation\(model, folder\)"):
        save_adaptation("folder", model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", [n for n, v in PUBLIC.items() if inspect.isclass(v) and "params" in _settings(v)]
)
def test_an_optimizer_asks_for_parameters(name: str) -> None:
    model = _model()
    for params in (model, nn.Linear(2, 2), [{"params": model}]):
        with pytest.raises(ConfigurationError, match=r"pass model\.parameters\(\)$"):
            PUBLIC[name](params, lr=1e-3)
    with pytest.raises(ConfigurationError, match=r"call it, as in model\.parameters\(\)$"):
        PUBLIC[name](model.parameters, lr=1e-3)


def test_a_missing_argument_is_named_with_the_public_class() -> None:
    from sensitivity_lr import SageAdamW

    with pytest.raises(TypeError, match=r"^SageAdamW: missing a required argument: 'lr'$"):
        SageAdamW(_model().parameters())  # type: ignore[call-arg]


def test_errors_of_what_the_user_passes_come_through() -> None:
    @explain_arguments
    def call(function: Any, model: nn.Module) -> Any:
        return function(model)

    def broken(model: nn.Module) -> None:
        raise AttributeError("of the user's own function")

    with pytest.raises(AttributeError, match="of the user's own function"):
        call(broken, _model())
    assert call(lambda model: 3, "works, though no module") == 3  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="model='x' is not of class Module"):
        call(lambda model: model.missing, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (_model(), "Sequential(...)"),
        ([_model(), 1], "[Sequential(...), 1]"),
        (torch.zeros(3, 500), "Tensor of shape (3, 500)"),
        (torch.tensor(2.0), "tensor(2.)"),
        ({"a": 1}, "{'a': 1}"),
        (nn.Linear, "the class Linear"),
    ],
)
def test_values_are_shown_on_one_short_line(value: object, text: str) -> None:
    assert shown(value) == text


def test_long_values_are_cut() -> None:
    assert all(len(shown(value)) < 90 for value in ("x" * 900, list(range(900)), dict.fromkeys(range(900))))
