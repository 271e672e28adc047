"""The state: in files, in copies, and when training goes on."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import (
    assert_equal,
    parameters,
    saved_and_loaded,
    tensors,
    train,
    trained,
)

__all__ = ["resumes_exactly", "state_survives"]


def state_survives(cls: Factory, case: OptimizerCase) -> None:
    """State of bfloat16 parameters is float32 and comes back exact from a file, and from a deep copy."""
    params = parameters(torch.bfloat16)
    optimizer = cls(params, **case.settings)
    train(optimizer, params, range(3))
    before = optimizer.state_dict()
    other = cls(parameters(torch.bfloat16), **case.settings)
    other.load_state_dict(saved_and_loaded(before))
    sharing = cls(parameters(torch.bfloat16), **case.settings)
    sharing.load_state_dict(before)
    for after in (other.state_dict(), sharing.state_dict(), deepcopy(optimizer).state_dict()):
        pairs = list(zip(tensors(before), tensors(after), strict=True))
        assert pairs
        for (key, name, old), (other_key, other_name, new) in pairs:
            assert (key, name) == (other_key, other_name)
            assert new.dtype == old.dtype == torch.float32, f"{name} is {new.dtype}"
            assert torch.equal(old, new), f"{name} changed"
            assert old.numel() == 0 or old.data_ptr() != new.data_ptr(), f"{name} shares memory"
        assert after["param_groups"] == before["param_groups"]


def resumes_exactly(cls: Factory, case: OptimizerCase) -> None:
    """Ten steps equal five, a file, and five more, bit for bit."""
    for dtype in (torch.float32, torch.bfloat16):
        expected = trained(cls, 10, dtype, **case.settings)
        params = parameters(dtype)
        first = cls(params, **case.settings)
        train(first, params, range(5))
        resumed = [nn.Parameter(param.detach().clone()) for param in params]
        second = cls(resumed, **case.settings)
        second.load_state_dict(saved_and_loaded(first.state_dict()))
        train(second, resumed, range(5, 10))
        assert_equal(resumed, expected)
