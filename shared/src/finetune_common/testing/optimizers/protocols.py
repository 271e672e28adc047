"""torch's protocols around an optimizer: its registries, odd parameters, numbers that overflow, calls."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from finetune_common.testing.calls import Calls, as_on_a_gpu
from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import assert_close, assert_equal, pair, step

__all__ = [
    "checks_settings_at_the_next_step",
    "has_torchs_registries",
    "moves_what_begins_at_zero",
    "skips_by_option",
    "stays_finite",
    "steps_odd_parameters",
    "takes_few_calls",
]


def has_torchs_registries(cls: Factory, case: OptimizerCase) -> None:
    """Hooks of step and state are called once each, a parameter is in one group only, repr shows settings."""
    params, seen = pair(), list[str]()
    optimizer = cls([("one", params[0]), ("two", params[1])], **case.settings)

    def note(name: str) -> Callable[..., None]:
        def noted(*_: object) -> None:
            seen.append(name)

        return noted

    optimizer.register_step_pre_hook(note("before step"))
    optimizer.register_step_post_hook(note("after step"))
    optimizer.register_state_dict_pre_hook(note("before state"))
    optimizer.register_state_dict_post_hook(note("after state"))
    step(optimizer, params, [1.0, 1.0])
    saved = optimizer.state_dict()
    assert seen == ["before step", "after step", "before state", "after state"]
    assert saved["param_groups"][0]["param_names"] == ["one", "two"]
    assert f"lr: {case.settings['lr']}" in repr(optimizer)
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": [("again", params[0])]})
    assert len(optimizer.param_groups) == 1


def steps_odd_parameters(cls: Factory, case: OptimizerCase) -> None:
    """A parameter with gaps in memory takes the steps of a dense one; one without elements does no harm."""
    dense = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    results: list[list[nn.Parameter]] = []
    for tensor in (dense.clone()[::2], dense[::2].clone()):
        params = [nn.Parameter(tensor), nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.tensor(1.0))]
        optimizer = cls(params, **case.settings)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()
        results.append(params)
    assert_close(results[0], results[1], 1e-6)


def stays_finite(cls: Factory, case: OptimizerCase) -> None:
    """Finite gradients whose squares overflow leave parameters finite, and training goes on."""
    params = pair()
    optimizer = cls(params, **case.settings)
    for size in (1.0, 1e20, 1.0, -1.0):
        step(optimizer, params, [size, 1.0])
    assert all(torch.isfinite(param).all() for param in params)


def moves_what_begins_at_zero(cls: Factory, case: OptimizerCase) -> None:
    """A parameter of zeros moves within three steps, unless the case says that it stays."""
    param = nn.Parameter(torch.zeros(3))
    optimizer = cls([param], **case.settings)
    for size in (1.0, 2.0, 3.0):
        step(optimizer, [param], [size])
    assert bool(param.detach().all()) == case.moves_zeros


def checks_settings_at_the_next_step(cls: Factory, case: OptimizerCase) -> None:
    """A setting changed to something illegal is refused by the next step; unknown arguments at once."""
    params = pair()
    optimizer = cls(params, **case.settings)
    step(optimizer, params, [1.0, 1.0])
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ConfigurationError, match="lr"):
        step(optimizer, params, [1.0, 1.0])
    with pytest.raises((TypeError, ValueError), match="lr"):
        cls(pair(), **{**case.settings, "lr": "1e-3"})
    with pytest.raises(TypeError, match="weight_decya"):
        cls(pair(), **case.settings, weight_decya=0.1)


def skips_by_option(cls: Factory, case: OptimizerCase) -> None:
    """With skip_nonfinite="step" a gradient that is not finite leaves no trace but its count."""
    params, expected = pair(), pair()
    optimizer, reference = cls(params, **case.settings), cls(expected, **case.settings)
    optimizer.param_groups[0]["skip_nonfinite"] = "step"
    for size in (1.0, float("nan"), 2.0, float("inf"), 3.0):
        step(optimizer, params, [size, 1.0])
        if size in (1.0, 2.0, 3.0):
            step(reference, expected, [size, 1.0])
    assert_equal(params, expected)
    assert optimizer.param_groups[0]["skipped"] == 2


FUSED_CALLS, FOREACH_CALLS = 40, 60
"""Calls that a step of 393 tensors may make on a GPU."""


def takes_few_calls(cls: Factory, case: OptimizerCase) -> None:
    """On a GPU, a step of 393 tensors (a large BERT) takes few calls and never waits for a value.

    It copies at most one packed tensor of numbers from the host.
    """
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
        assert len(calls.from_host) <= 1, f"{path}: {calls.from_host}"
        assert len(calls.names) <= most, f"{path}: {len(calls.names)} calls: {calls.names}"


@contextmanager
def _on_a_gpu() -> Generator[Calls, None, None]:
    calls = Calls()
    with as_on_a_gpu(lambda: calls):
        yield calls
