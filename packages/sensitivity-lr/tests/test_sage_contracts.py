"""The contracts of every optimizer, over the cross of SAGE's settings."""

import importlib.util
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from finetune_common.testing import OptimizerCase, check_optimizer
from sensitivity_lr import SageAdamax, SageAdamW, SageSGD

_spec = importlib.util.spec_from_file_location(
    "numpy_reference", Path(__file__).with_name("numpy_reference.py")
)
numpy_reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(numpy_reference)


def case(reference, costly=False, convergent=None, **settings):
    name = ",".join(f"{key}={value}" for key, value in settings.items() if key != "lr")
    stays = settings["form"] == "released" and settings.get("legacy", False)
    return OptimizerCase(name, settings, reference(**settings), convergent or {}, costly, not stays)


ADAM = [
    {"lr": 1e-2, "form": form, "legacy": legacy, "weight_decay": decay, "beta3": beta3, "sensitivity_eps": s}
    for form, legacy, decay, (beta3, s) in product(
        ("released", "paper"), (False, True), (0.0, 0.1), ((0.75, None), (0.85, 1e-8))
    )
]
SGD = [
    {"lr": 1e-2, "momentum": momentum, "nesterov": nesterov, "form": form, "weight_decay": decay}
    for (momentum, nesterov), form, decay in product(
        ((0.0, False), (0.9, False), (0.9, True)), ("released", "paper"), (0.0, 0.1)
    )
]
ADAMW_CASES = [
    case(numpy_reference.adamw, costly=i in (0, 15), convergent={"lr": 0.2, "weight_decay": 0.0}, **settings)
    for i, settings in enumerate(ADAM)
]
ADAMAX_CASES = [
    case(numpy_reference.adamax, costly=i == 1, convergent={"lr": 0.5, "weight_decay": 0.0}, **settings)
    for i, settings in enumerate(ADAM)
]
SGD_CASES = [
    case(
        numpy_reference.sgd,
        costly=i == 9,
        convergent={"lr": 1e-3 if settings["momentum"] else 2e-3, "weight_decay": 0.0},
        **settings,
    )
    for i, settings in enumerate(SGD)
]


@pytest.mark.parametrize("check", check_optimizer(SageAdamW, ADAMW_CASES))
def test_adamw(check):
    check()


@pytest.mark.parametrize("check", check_optimizer(SageAdamax, ADAMAX_CASES))
def test_adamax(check):
    check()


@pytest.mark.parametrize("check", check_optimizer(SageSGD, SGD_CASES))
def test_sgd(check):
    check()


@pytest.mark.parametrize(
    ("cls", "reference", "settings"),
    [
        (SageAdamW, numpy_reference.adamw, {"lr": 0.01, "weight_decay": 0.1}),
        (SageAdamax, numpy_reference.adamax, {"lr": 0.01, "weight_decay": 0.1}),
        (SageAdamax, numpy_reference.adamax, {"lr": 0.01, "weight_decay": 0.1, "legacy": True}),
        (SageSGD, numpy_reference.sgd, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}),
    ],
)
def test_groups_without_sage_follow_the_plain_optimizer(cls, reference, settings):
    def without_sage(params, **given):
        return cls([{"params": list(params), "sage": False}], **given)

    plain = OptimizerCase("plain", settings, reference(**settings, sage=False))
    wanted = {"agrees_with_reference", "foreach_equals_reference", "state_survives", "resumes_exactly"}
    checks = [param.values[0] for param in check_optimizer(without_sage, [plain])]
    chosen = [check for check in checks if isinstance(check, partial) and check.func.__name__ in wanted]
    assert len(chosen) == len(wanted)
    for check in chosen:
        check()
