"""SAGE around optimizers that keep state, groups and files in their own way."""

from copy import deepcopy

import pytest
import torch

from finetune_common.errors import ConfigurationError
from sensitivity_lr import Sage

SHAPES = ((4, 3), (5,))


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def train(optimizer, params, steps):
    for step in steps:
        torch.manual_seed(step + 1)
        for param in params:
            param.grad = torch.randn(param.shape).to(param.dtype)
        optimizer.step()


def equal(params, others):
    return all(torch.equal(a, b) for a, b in zip(params, others, strict=True))


class Shrinking(torch.optim.Optimizer):
    """Steps of lr/k, with k in the optimizer itself, and no `lr` in the groups."""

    def __init__(self, params):
        super().__init__(params, {})
        self.k = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.k += 1
        for group in self.param_groups:
            for param in group["params"]:
                param -= 0.1 / self.k * param.grad

    def state_dict(self):
        return {**super().state_dict(), "k": self.k}

    def load_state_dict(self, state):
        self.k = state["k"]
        super().load_state_dict({name: value for name, value in state.items() if name != "k"})


class NoRate(torch.optim.SGD):
    """As transformers' Adafactor: the rate of a group may be None."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            group["lr"] = None
        self.defaults["lr"] = None

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.1
        super().step()
        for group in self.param_groups:
            group["lr"] = None


@pytest.mark.parametrize("apart", [False, True], ids=["joined", "earlier file"])
def test_what_the_other_optimizer_saves_of_itself_is_restored(apart):
    params = parameters()
    optimizer = Sage(Shrinking(params))
    train(optimizer, params, range(3))
    saved = deepcopy(optimizer.state_dict())
    assert saved["k"] == 3
    if apart:
        saved = {
            "state": saved["state"],
            "param_groups": saved["param_groups"],
            "base": {**saved, "state": {}},
        }
    resumed = [torch.nn.Parameter(param.detach().clone()) for param in params]
    again = Sage(Shrinking(resumed))
    again.load_state_dict(saved)
    train(optimizer, params, range(3, 6))
    train(again, resumed, range(3, 6))
    assert equal(params, resumed)


def test_a_rate_of_none_is_the_other_optimizers_affair():
    params, plain = parameters(), parameters()
    train(Sage(NoRate(params)), params, range(3))
    train(Sage(torch.optim.SGD(plain, lr=0.1)), plain, range(3))
    assert equal(params, plain)


def test_hooks_of_both_optimizers_see_their_files():
    params, seen = parameters(), []
    optimizer = Sage(torch.optim.AdamW(params))
    for name, its in (("sage", optimizer), ("base", optimizer.base)):
        its.register_state_dict_pre_hook(lambda _, name=name: seen.append(f"{name} saves"))
        its.register_state_dict_post_hook(lambda _, state, name=name: {**state, f"of {name}": 1})
        its.register_load_state_dict_pre_hook(lambda _, state, name=name: seen.append(f"{name} loads"))
        its.register_load_state_dict_post_hook(lambda _, name=name: seen.append(f"{name} has loaded"))
    saved = optimizer.state_dict()
    assert saved["of sage"] == saved["of base"] == 1
    optimizer.load_state_dict(saved)
    wanted = ["sage saves", "base saves", "sage loads", "base loads", "base has loaded", "sage has loaded"]
    assert seen == wanted


def test_float32_state_of_the_other_optimizer_comes_back_as_float32():
    clipped = pytest.importorskip("clipped_adaptive").ClippedAdam
    params = parameters(torch.bfloat16)
    optimizer = Sage(clipped(params, lr=0.01))
    train(optimizer, params, range(3))
    resumed = [torch.nn.Parameter(param.detach().clone()) for param in params]
    again = Sage(clipped(resumed, lr=0.01))
    again.load_state_dict(deepcopy(optimizer.state_dict()))
    assert {state["exp_avg"].dtype for state in again.state.values()} == {torch.float32}
    train(optimizer, params, range(3, 6))
    train(again, resumed, range(3, 6))
    assert equal(params, resumed)


def test_a_group_that_the_other_optimizer_got_by_itself_is_scaled_too():
    params, together = parameters(), parameters()
    base = torch.optim.AdamW(params[:1], lr=0.01)
    optimizer = Sage(base, beta3=0.6)
    base.add_param_group({"params": params[1:]})
    train(optimizer, params, range(3))
    train(Sage(torch.optim.AdamW(together, lr=0.01), beta3=0.6), together, range(3))
    assert equal(params, together)


@pytest.mark.parametrize("loads", ["base", "sage"])
def test_a_file_of_the_other_optimizer_alone_is_taken(loads):
    params = parameters()
    plain = torch.optim.AdamW(params, lr=0.05)
    train(plain, params, range(2))
    optimizer = Sage(torch.optim.AdamW(params, lr=0.01), beta3=0.6)
    (optimizer.base if loads == "base" else optimizer).load_state_dict(deepcopy(plain.state_dict()))
    train(optimizer, params, range(2, 3))
    [group] = optimizer.param_groups
    assert (group["lr"], group["beta3"], group["sage"]) == (0.05, 0.6, True)
    assert all(state["step"] == 3 and "sensitivity" in state for state in optimizer.state.values())


def test_nothing_is_written_if_the_file_is_of_another_model():
    params = parameters()
    optimizer = Sage(torch.optim.AdamW(params, lr=0.01))
    train(optimizer, params, range(2))
    saved, before = optimizer.state_dict(), deepcopy(optimizer.state_dict())
    wrong = deepcopy(saved)
    wrong["state"][0]["sensitivity"] = torch.zeros(7)
    with pytest.raises(ConfigurationError, match="load the state of the same model"):
        optimizer.load_state_dict(wrong)
    for index, entries in before["state"].items():
        assert all(torch.equal(value, saved["state"][index][name]) for name, value in entries.items())
