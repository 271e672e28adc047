"""Settings of optimizers are of their default's kind, whoever sets them; a number may be any number."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from finetune_common.errors import ConfigurationError
from finetune_common.optim import ElementwiseOptimizer
from finetune_common.optim.settings import as_pair, check_betas, check_whole


def descent(param, grad, *, lr):
    return (param - grad * lr,)


class Descent(ElementwiseOptimizer):
    def __init__(self, params, lr, *, halve=False, power=1.0, limit=None, **running):
        super().__init__(params, {"lr": lr, "halve": halve, "power": power, "limit": limit}, **running)

    def rule(self, group):
        return descent, {}

    def scalars(self, group, step):
        lr = float(group["lr"])
        return {"lr": (lr / 2 if group["halve"] else lr) ** group["power"]}


class Inherits(Descent):
    def __init__(self, params, **settings):
        super().__init__(params, 0.5, **settings)


def weight():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    return param


WRONG = [
    ("halve", "False", "no truth value: give True or False"),
    ("halve", None, "no truth value"),
    ("halve", 2, "no truth value"),
    ("maximize", "False", "no truth value"),
    ("stochastic_rounding", "no", "no truth value"),
    ("foreach", "False", "no truth value"),
    ("fused", "no", "no truth value"),
    ("power", "1.0", "not a number"),
    ("power", None, "not a number"),
    ("power", True, "not a number"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
@pytest.mark.parametrize("build", [lambda params, **given: Descent(params, 0.5, **given), Inherits])
def test_another_kind_is_refused_when_it_is_given(build, name, value, message):
    with pytest.raises(ConfigurationError, match=f"{name}={value!r} is {message}") as raised:
        build([weight()], **{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "message"), [case for case in WRONG if case[0] not in ("foreach", "fused")]
)
def test_another_kind_is_refused_in_a_group_and_at_the_next_step(name, value, message):
    with pytest.raises(ConfigurationError, match=message):
        Descent([{"params": [weight()], name: value}], 0.5)
    optimizer = Descent([weight()], 0.5)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ConfigurationError, match=message):
        optimizer.step()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"halve": np.True_}, 0.75),
        ({"halve": 1}, 0.75),
        ({"power": 2}, 0.75),
        ({"power": Fraction(2)}, 0.75),
        ({"power": np.float32(2)}, 0.75),
        ({"limit": "any"}, 0.5),
        ({"maximize": True}, 1.5),
        ({"foreach": None, "fused": False}, 0.5),
    ],
)
def test_the_same_kind_in_another_class_is_taken(settings, expected):
    param = weight()
    Descent([param], 0.5, **settings).step()
    assert param.tolist() == [expected] * 2


def test_a_rate_may_become_a_tensor_and_no_more_than_one_number():
    optimizer = Descent([weight()], 0.5)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.25])
    optimizer.step()
    for wrong, message in (
        (torch.ones(2), "lr has shape"),
        ("0.1", "lr='0.1' is not a number"),
        (None, "lr="),
    ):
        optimizer.param_groups[0]["lr"] = wrong
        with pytest.raises(ConfigurationError, match=message):
            optimizer.step()


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), "0.9,0.999", 0.9, None])
def test_decays_are_two(betas):
    with pytest.raises(ConfigurationError, match=r"is not a pair: give two numbers in \[0, 1\)"):
        check_betas(as_pair(betas))


def test_decays_of_a_list_or_array_are_a_tuple():
    for betas in ([0.9, 0.99], np.array([0.9, 0.99])):
        assert as_pair(betas) == (0.9, 0.99)
        check_betas(as_pair(betas))
    with pytest.raises(ConfigurationError, match=r"beta2='0\.999' is not a number"):
        check_betas((0.9, "0.999"))


def test_whole_numbers():
    check_whole("window", np.int64(3), at_least=1)
    for value in (10.5, 10.0, "10", True, 0, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match="window="):
            check_whole("window", value, at_least=1)
