"""The numbers of a step: against the equations, and between the ways of running."""

from __future__ import annotations

import torch

from finetune_common.aliases import StateDict
from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import (
    TOLERANCE,
    assert_close,
    gradients,
    parameters,
    trained,
)

__all__ = ["agrees_with_reference", "foreach_equals_reference"]


def agrees_with_reference(cls: Factory, case: OptimizerCase) -> None:
    """A step follows the NumPy reference: 30 steps to 1e-12 in float64, 10 to 1e-5 in float32.

    With so few numbers on a CPU the rule runs as written, unless another way is requested.
    """
    for dtype, steps, tolerance in ((torch.float64, 30, 1e-12), (torch.float32, 10, 1e-5)):
        params = parameters(dtype)
        expected = [param.detach().double().clone().numpy() for param in params]
        optimizer = cls(params, **case.settings)
        state: StateDict = {}
        for step in range(steps):
            grads = gradients(params, step)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
            expected = case.reference(expected, [grad.double().numpy() for grad in grads], state, step + 1)
        assert_close(params, expected, tolerance)


def foreach_equals_reference(cls: Factory, case: OptimizerCase) -> None:
    """Running over lists changes nothing, in any dtype."""
    for dtype, tolerance in TOLERANCE.items():
        expected = trained(cls, 10, dtype, fused=False, foreach=False, **case.settings)
        assert_close(trained(cls, 10, dtype, foreach=True, **case.settings), expected, tolerance)
