"""SAGE around other optimizers."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sensitivity_lr import Sage, SageSGD


def gradients(params, step):
    torch.manual_seed(step + 1)
    for param in params:
        param.grad = torch.randn(param.shape).to(param.dtype)


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((4, 3), (5,), ())]


def train(optimizer, params, steps):
    for step in steps:
        gradients(params, step)
        optimizer.step()


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize(
    "base", [torch.optim.RMSprop, torch.optim.Adadelta, torch.optim.NAdam, torch.optim.ASGD]
)
def test_it_scales_the_update_of_any_optimizer(base, form):
    params, shadow = parameters(torch.float64), parameters(torch.float64)
    optimizer = Sage(base(params, lr=0.01, weight_decay=0.1), beta3=0.8, form=form, sensitivity_eps=1e-9)
    alone = base(shadow, lr=0.01, weight_decay=0.1)
    averages = [np.zeros(param.shape) for param in params]
    for step in range(20):
        gradients(params, step)
        before = [param.detach().clone().numpy() for param in params]
        with torch.no_grad():
            for param, twin in zip(params, shadow, strict=True):
                twin.copy_(param)
                twin.grad = param.grad.clone()
        alone.step()
        optimizer.step()
        for i, (param, twin) in enumerate(zip(params, shadow, strict=True)):
            sensitivity = np.abs(before[i] * param.grad.numpy())
            averages[i] = 0.8 * averages[i] + 0.2 * sensitivity
            more = 1e-9 if form == "paper" else 0.0
            factor = (np.abs(sensitivity - averages[i]) + more) / (averages[i] + 1e-9)
            expected = before[i] + factor * (twin.detach().numpy() - before[i])
            np.testing.assert_allclose(param.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_around_sgd_it_is_sage_sgd():
    ours, theirs = parameters(), parameters()
    train(Sage(torch.optim.SGD(ours, lr=0.01, momentum=0.9)), ours, range(10))
    train(SageSGD(theirs, lr=0.01, momentum=0.9), theirs, range(10))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_groups_and_schedulers_are_shared_with_the_other_optimizer():
    params, alone = parameters(), parameters()
    groups = [{"params": params[:1], "sage": False}, {"params": params[1:2], "beta3": 0.6}]
    base = torch.optim.SGD(groups, lr=0.1)
    optimizer = Sage(base)
    optimizer.add_param_group({"params": params[2:], "lr": 0.5})
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    plain = torch.optim.SGD(alone[:1], lr=0.1)
    assert [group["beta3"] for group in optimizer.param_groups] == [0.75, 0.6, 0.75]
    train(optimizer, params, [0])
    alone[0].grad = params[0].grad.clone()
    plain.step()
    assert torch.equal(params[0], alone[0])
    schedule.step()
    assert [group["lr"] for group in base.param_groups] == [0.05, 0.05, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_resumes_exactly_and_deep_copies(dtype, tmp_path):
    params = parameters(dtype)
    optimizer = Sage(torch.optim.SGD(params, lr=0.01, momentum=0.9))
    train(optimizer, params, range(5))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = [torch.nn.Parameter(param.detach().clone()) for param in params]
    again = Sage(torch.optim.SGD(resumed, lr=1.0))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copied_params, copied = deepcopy((params, optimizer))
    for given_params, given in ((params, optimizer), (resumed, again), (copied_params, copied)):
        train(given, given_params, range(5, 10))
    for a, b, c in zip(params, resumed, copied_params, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert all(state["sensitivity"].dtype == torch.float32 for state in again.state.values())


def test_a_closure_reaches_the_other_optimizer():
    param = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Sage(torch.optim.SGD([param], lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 1.0
    assert param.item() == pytest.approx(1 - 3 * 0.1 * 2)


BASES = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
}


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("flatten", [False, True])
def test_torchs_checkpoint_tools_carry_both_optimizers_and_share_no_memory(base, flatten):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = Sage(base(model.parameters()))
    train(optimizer, [*model.parameters()], range(2))
    saved, twin = get_optimizer_state_dict(model, optimizer, options=options), deepcopy(model)
    other = Sage(base(twin.parameters()))
    set_optimizer_state_dict(twin, other, saved, options=options)
    for own, its in ((model, optimizer), (twin, other)):
        train(its, [*own.parameters()], range(2, 4))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_groups_stay_one_whoever_loads_a_state():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = Sage(torch.optim.AdamW([param], lr=0.01))
    for loading in (optimizer.base, optimizer):
        loading.load_state_dict(deepcopy(loading.state_dict()))
        assert optimizer.param_groups is optimizer.base.param_groups
        assert optimizer.state is optimizer.base.state
    optimizer.param_groups[0]["lr"] = 0.0
    train(optimizer, [param], range(2))
    assert torch.equal(param, torch.ones(3))


def test_hooks_change_what_is_loaded_and_global_step_hooks_are_called_once():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = Sage(torch.optim.AdamW([param], lr=0.01))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: state["param_groups"][0].update(lr=0.002))
    optimizer.load_state_dict(deepcopy(optimizer.state_dict()))
    assert optimizer.base.param_groups[0]["lr"] == 0.002
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("before")),
        register_optimizer_step_post_hook(lambda *_: seen.append("after")),
    ]
    train(optimizer, [param], range(2))
    for handle in handles:
        handle.remove()
    train(optimizer, [param], range(1))
    assert seen == ["before", "after"] * 2


def test_one_cycle_cycles_the_momentum_of_the_other_optimizer():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = Sage(torch.optim.AdamW([param], lr=0.01))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4)
    before = optimizer.base.param_groups[0]["betas"]
    train(optimizer, [param], range(1))
    schedule.step()
    assert optimizer.base.param_groups[0]["betas"] != before


def test_a_file_with_the_other_optimizers_state_apart_is_read():
    params = parameters()
    optimizer = Sage(torch.optim.AdamW(params, lr=0.01))
    train(optimizer, params, range(3))
    saved = optimizer.state_dict()
    apart = {
        "state": {i: {"sensitivity": own["sensitivity"]} for i, own in saved["state"].items()},
        "param_groups": saved["param_groups"],
        "base": {
            "state": {
                i: {name: value for name, value in own.items() if name != "sensitivity"}
                for i, own in saved["state"].items()
            },
            "param_groups": saved["param_groups"],
        },
    }
    resumed = [torch.nn.Parameter(param.detach().clone()) for param in params]
    again = Sage(torch.optim.AdamW(resumed, lr=1.0))
    again.load_state_dict(deepcopy(apart))
    train(optimizer, params, range(3, 6))
    train(again, resumed, range(3, 6))
    for a, b in zip(params, resumed, strict=True):
        assert torch.equal(a, b)
