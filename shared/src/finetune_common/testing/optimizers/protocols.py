"""torch's protocols around an optimizer: hooks, states from elsewhere, checkpoint tools, schedulers."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from finetune_common.errors import ConfigurationError
from finetune_common.testing.calls import Calls, as_on_a_gpu
from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import assert_close, assert_equal

__all__ = [
    "checks_settings_at_the_next_step",
    "follows_schedulers",
    "loads_older_states",
    "loads_what_a_hook_returns",
    "moves_what_begins_at_zero",
    "stays_finite",
    "steps_odd_parameters",
    "survives_checkpoint_tools",
    "takes_few_calls",
]


def _step(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], values: list[float]) -> None:
    for param, value in zip(params, values, strict=True):
        param.grad = torch.full_like(param, value)
    optimizer.step()


def _pair() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, 2.0, -3.0])), nn.Parameter(torch.tensor([0.5, -0.5, 2.0]))]


def loads_what_a_hook_returns(cls: Factory, case: OptimizerCase) -> None:
    """A pre-hook that sorts a state by name is heeded, exactly; a post-hook sees what was loaded."""
    a, b = _pair()
    first = cls([("a", a), ("b", b)], **case.settings)
    _step(first, [a, b], [1.0, 5.0])
    second = cls([("b", b), ("a", a)], **case.settings)
    seen = []

    def by_name(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        names = state["param_groups"][0]["param_names"]
        mine = optimizer.param_groups[0]["param_names"]
        sorted_state = {i: state["state"][names.index(name)] for i, name in enumerate(mine)}
        return {**state, "state": sorted_state}

    second.register_load_state_dict_pre_hook(by_name)
    second.register_load_state_dict_post_hook(lambda optimizer: seen.append(len(optimizer.state)))
    second.load_state_dict(first.state_dict())
    assert seen == [2]
    for param in (a, b):
        assert second.state[param].keys() == first.state[param].keys()
        assert_equal(
            [v for v in second.state[param].values() if isinstance(v, Tensor)],
            [v for v in first.state[param].values() if isinstance(v, Tensor)],
        )


def loads_older_states(cls: Factory, case: OptimizerCase) -> None:
    """What a file lacks gets its default; steps may be numbers; another model's state writes nothing."""
    params = _pair()
    optimizer = cls(params, **case.settings)
    _step(optimizer, params, [1.0, 2.0])
    saved = optimizer.state_dict()
    for name in set(saved["param_groups"][0]) - {"params", "lr"}:
        older = copy.deepcopy(saved)
        older["param_groups"][0].pop(name)
        optimizer.load_state_dict(older)
        _step(optimizer, params, [1.0, 2.0])
    for name in saved["state"][0]:
        older = copy.deepcopy(saved)
        older["state"][0].pop(name)
        optimizer.load_state_dict(older)
        _step(optimizer, params, [1.0, 2.0])
    if "step" in saved["state"][0]:
        numeric = copy.deepcopy(saved)
        for entries in numeric["state"].values():
            entries["step"] = float(entries["step"])
        optimizer.load_state_dict(numeric)
        assert all(float(state["step"]) == 1 for state in optimizer.state.values())
    before = copy.deepcopy(optimizer.state_dict())
    wrong = copy.deepcopy(saved)
    names = [n for n, v in wrong["state"][1].items() if isinstance(v, Tensor) and v.shape == (3,)]
    if names:
        wrong["state"][1][names[0]] = torch.zeros(7)
        with pytest.raises(ConfigurationError, match="shape"):
            optimizer.load_state_dict(wrong)
        assert str(optimizer.state_dict()) == str(before)


def survives_checkpoint_tools(cls: Factory, case: OptimizerCase) -> None:
    """torch.distributed.checkpoint carries all of the state, plain and flattened, into a new optimizer."""
    for flatten in (False, True):
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = cls(model.parameters(), **case.settings)
        for size in (1.0, 3.0):
            _step(optimizer, [*model.parameters()], [size, -size])
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        twin = copy.deepcopy(model)
        other = cls(twin.parameters(), **case.settings)
        set_optimizer_state_dict(twin, other, saved, options=options)
        for own, its in ((model, optimizer), (twin, other)):
            _step(its, [*own.parameters()], [2.0, 1.0])
        assert_equal([*twin.parameters()], [*model.parameters()])


def follows_schedulers(cls: Factory, case: OptimizerCase) -> None:
    """torch's schedulers drive it, momentum cycles included."""
    schedules = torch.optim.lr_scheduler
    for make in (
        lambda o: schedules.OneCycleLR(o, 0.1, total_steps=8, cycle_momentum=_has_momentum(o)),
        lambda o: schedules.CyclicLR(o, 1e-3, 1e-2, 2, cycle_momentum=_has_momentum(o)),
        lambda o: schedules.LambdaLR(o, lambda step: 0.5**step),
        lambda o: schedules.CosineAnnealingWarmRestarts(o, 3),
        lambda o: schedules.ReduceLROnPlateau(o, patience=0),
    ):
        params = _pair()
        optimizer = cls(params, **case.settings)
        schedule: Any = make(optimizer)
        for _ in range(4):
            _step(optimizer, params, [1.0, -1.0])
            schedule.step(*([1.0] if isinstance(schedule, schedules.ReduceLROnPlateau) else []))
        assert all(torch.isfinite(param).all() for param in params)


def _has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    defaults = optimizer.defaults
    return "betas" in defaults or (bool(defaults.get("momentum")) and not defaults.get("nesterov"))


def steps_odd_parameters(cls: Factory, case: OptimizerCase) -> None:
    """A parameter with gaps in memory takes the steps of a dense one; one without elements does no harm."""
    whole = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for tensor in (whole.clone()[::2], whole[::2].clone()):
        params = [nn.Parameter(tensor), nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.tensor(1.0))]
        optimizer = cls(params, **case.settings)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        results.append(params)
    assert_close(results[0], results[1], 1e-6)


def stays_finite(cls: Factory, case: OptimizerCase) -> None:
    """Finite gradients whose squares overflow leave parameters finite, and training goes on."""
    params = _pair()
    optimizer = cls(params, **case.settings)
    for size in (1.0, 1e20, 1.0, -1.0):
        _step(optimizer, params, [size, 1.0])
    assert all(torch.isfinite(param).all() for param in params)


def moves_what_begins_at_zero(cls: Factory, case: OptimizerCase) -> None:
    """A parameter of zeros moves within three steps, unless the case says that it stays."""
    param = nn.Parameter(torch.zeros(3))
    optimizer = cls([param], **case.settings)
    for size in (1.0, 2.0, 3.0):
        _step(optimizer, [param], [size])
    assert bool(param.detach().all()) == case.moves_zeros


def checks_settings_at_the_next_step(cls: Factory, case: OptimizerCase) -> None:
    """A setting changed to something illegal is refused by the next step; unknown arguments at once."""
    params = _pair()
    optimizer = cls(params, **case.settings)
    _step(optimizer, params, [1.0, 1.0])
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ConfigurationError, match="lr"):
        _step(optimizer, params, [1.0, 1.0])
    with pytest.raises((TypeError, ValueError), match="lr"):
        cls(_pair(), **{**case.settings, "lr": "1e-3"})
    with pytest.raises(TypeError, match="weight_decya"):
        cls(_pair(), **case.settings, weight_decya=0.1)


FUSED_CALLS, FOREACH_CALLS = 40, 60
"""Calls that a step of 393 tensors may make on a GPU."""


def takes_few_calls(cls: Factory, case: OptimizerCase) -> None:
    """On a GPU a step of a large BERT's 393 tensors is few calls, and waits for no value."""
    for path, most in (("fused", FUSED_CALLS), ("foreach", FOREACH_CALLS)):
        shapes = [(4, 4), (4,), (4, 8), (8,), (1, 2)]
        params = [nn.Parameter(torch.ones(shapes[i % 5])) for i in range(393)]
        optimizer = cls(params, **{path: True}, **case.settings)
        with _on_a_gpu() as calls:
            for _ in range(2):
                for param in params:
                    param.grad = torch.ones_like(param)
                calls.names.clear()
                with calls:
                    optimizer.step()
        assert not calls.waits, f"{path}: {calls.waits}"
        assert len(calls.names) <= most, f"{path}: {len(calls.names)} calls: {calls.names}"


@contextmanager
def _on_a_gpu() -> Iterator[Calls]:
    calls = Calls()
    modules = [sys.modules[f"finetune_common.optim.{name}"] for name in ("run", "norms")]
    with as_on_a_gpu(lambda: calls, *modules):
        yield calls
