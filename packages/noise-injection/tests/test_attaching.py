"""Which optimizer a noise attaches itself to, and whose statistics it keeps."""

import numpy as np
import pytest
import torch

from finetune_common.errors import ConfigurationError
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise


class Around(torch.optim.Optimizer):
    """A wrapper that shares everything with the optimizers inside and calls no `super().__init__`."""

    def __init__(self, *inside):
        for number, optimizer in enumerate(inside):
            setattr(self, f"inner_{number}", optimizer)
        self.inside = inside
        self.param_groups, self.state = inside[0].param_groups, inside[0].state

    def step(self, closure=None):
        for optimizer in self.inside:
            optimizer.step(closure)


class Passes:
    def __init__(self, optimizer):
        self.wrapped = optimizer


def sgd(*params, lr=0.0):
    return torch.optim.SGD([{"params": [param]} for param in params], lr=lr)


def vector(size):
    return torch.nn.Parameter(torch.zeros(size))


@pytest.mark.parametrize("wrap", [Around, lambda o: Around(Around(o)), lambda o: Around(o, o), Passes])
def test_it_finds_the_one_optimizer_that_steps(wrap):
    param = vector(5)
    inner = sgd(param)
    AnnealedGradientNoise(wrap(inner))
    param.grad = torch.zeros(5)
    inner.step()
    assert param.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: Around(sgd(vector(2)), sgd(vector(2))), "has no hooks"),
        (lambda: Passes(3), "is not a torch.optim.Optimizer"),
        (lambda: "adamw", "'adamw' is not a torch.optim.Optimizer"),
    ],
)
def test_none_or_several_inside_are_refused_in_one_line(optimizer, message):
    with pytest.raises(ConfigurationError, match=f"{message}.*pass the one that steps") as raised:
        AnnealedGradientNoise(optimizer())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_by_norm": "False"}, "scale_by_norm='False' is no truth value"),
        ({"seed": 1.5}, "seed=1.5 is not a whole number: give 1"),
        ({"seed": "1"}, "seed='1' is not a number"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        AdaptiveGradientNoise(sgd(vector(2)), **settings)


def test_noise_that_shrinks_at_once_is_gone_at_the_second_step():
    param = vector(5)
    optimizer = sgd(param)
    AnnealedGradientNoise(optimizer, 1.0, gamma=1e300)
    noises = []
    for _ in range(2):
        param.grad = torch.zeros(5)
        optimizer.step()
        noises.append(param.grad.abs().max().item())
    assert noises[0] > 0
    assert noises[1] == 0


def taken(optimizer, history):
    """Step through the gradients of each parameter."""
    for step in range(len(next(iter(history.values())))):
        for param, gradients in history.items():
            param.grad = gradients[step].clone()
        optimizer.step()


def random_gradients(params, steps=3):
    return {param: [torch.randn(param.shape) for _ in range(steps)] for param in params}


@pytest.mark.parametrize("change", ["removed", "inserted", "reversed"])
def test_running_statistics_follow_their_parameter(change):
    first, second, new = vector(3), vector(4), vector(5)
    optimizer = sgd(first, second)
    noise = AdaptiveGradientNoise(optimizer, variance="running")
    early = random_gradients([first, second])
    taken(optimizer, early)
    groups = optimizer.param_groups
    if change == "removed":
        del groups[0]
    elif change == "inserted":
        groups.insert(0, {**groups[0], "params": [new]})
    else:
        groups.reverse()
    present = [param for group in groups for param in group["params"]]
    late = random_gradients(present)
    taken(optimizer, late)
    moments = noise.state_dict()["moments"]
    assert sorted(moments) == list(range(len(present)))
    for number, param in enumerate(present):
        recorded = torch.stack([*early.get(param, []), *late[param]]).double().numpy()
        assert moments[number]["count"] == len(recorded)
        for name, expected in (
            ("mean", recorded.mean(axis=0)),
            ("deviations", len(recorded) * np.var(recorded, axis=0)),
        ):
            np.testing.assert_allclose(moments[number][name].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variance", ["running", "ema"])
def test_a_parameter_in_anothers_place_begins_anew(variance):
    old, new = vector(3), vector(3)
    optimizer = sgd(old)
    AdaptiveGradientNoise(optimizer, 1.0, variance, scale_by_norm=False)
    taken(optimizer, random_gradients([old]))
    optimizer.param_groups[0]["params"][0] = new
    new.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(new.grad, torch.ones(3))


def test_a_state_with_more_parameters_is_refused():
    one, two = vector(3), vector(4)
    optimizer = sgd(one, two)
    noise = AdaptiveGradientNoise(optimizer, variance="running")
    taken(optimizer, random_gradients([one, two]))
    other = AdaptiveGradientNoise(sgd(vector(3)), variance="running")
    with pytest.raises(ConfigurationError, match="statistics of parameter 1, but the optimizer has 1"):
        other.load_state_dict(noise.state_dict())
