"""Behaviour of torch's optimizers apart from the arithmetic."""

from __future__ import annotations

import weakref

# torch's backward has no types:
# pyright: reportUnknownMemberType=false
import pytest
import torch
from torch import Tensor, nn

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError
from finetune_common.testing.optimizers.case import Factory, OptimizerCase
from finetune_common.testing.optimizers.training import assert_equal, gradients, parameters, trained

__all__ = [
    "converges",
    "evaluates_a_closure_once",
    "has_groups",
    "holds_no_gradient",
    "is_untouched_by_a_skipped_step",
    "leaves_what_has_no_gradient",
    "maximizes",
    "refuses_what_it_cannot_do",
    "takes_a_tensor_learning_rate",
]


def takes_a_tensor_learning_rate(cls: Factory, case: OptimizerCase) -> None:
    """A learning rate in a tensor acts like the number."""
    settings: Settings = {**case.settings, "lr": torch.tensor(case.settings["lr"], dtype=torch.float64)}
    assert_equal(trained(cls, 5, **settings), trained(cls, 5, **case.settings))


def maximizes(cls: Factory, case: OptimizerCase) -> None:
    """maximize=True with -g is minimising with g."""
    expected = trained(cls, 5, **case.settings)
    params = parameters()
    optimizer = cls(params, maximize=True, **case.settings)
    for step in range(5):
        for param, grad in zip(params, gradients(params, step), strict=True):
            param.grad = -grad
        optimizer.step()
    assert_equal(params, expected)


def leaves_what_has_no_gradient(cls: Factory, case: OptimizerCase) -> None:
    """Parameters without a gradient stay, and take their first step when they get one."""
    params = parameters()
    before = [param.detach().clone() for param in params]
    optimizer = cls(params, **case.settings)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert_equal(params[1:], before[1:])
    late, early = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cls([late], **case.settings)
    optimizer.step()
    reference = cls([early], **case.settings)
    for step in range(4):
        late.grad, early.grad = torch.full((3,), 1.0 + step), torch.full((3,), 1.0 + step)
        optimizer.step()
        reference.step()
    assert_equal([late], [early])


def holds_no_gradient(cls: Factory, case: OptimizerCase) -> None:
    """After zero_grad a step's gradients are free, small and large ones: memory for the next pass."""
    params = [nn.Parameter(torch.ones(count)) for count in (3, 10_000, 20_000)]
    optimizer = cls(params, **case.settings)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        held = [weakref.ref(param.grad) for param in params if param.grad is not None]
        optimizer.step()
        optimizer.zero_grad()
        assert not any(gradient() is not None for gradient in held)


def evaluates_a_closure_once(cls: Factory, case: OptimizerCase) -> None:
    """A closure is called once, with gradients enabled, and its loss is returned."""
    param, losses = nn.Parameter(torch.ones(3)), list[Tensor]()
    optimizer = cls([param], **case.settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        losses.append(loss)
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert len(losses) == 1
    assert param.grad is not None


def has_groups(cls: Factory, case: OptimizerCase) -> None:
    """Groups have separate settings, and a group may be added later."""
    still, moving, joining = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = cls([{"params": [still], "lr": 0.0}, {"params": [moving]}], **case.settings)
    optimizer.add_param_group({"params": [joining]})
    for step in range(3):
        for param in (still, moving, joining):
            param.grad = torch.full((3,), 1.0 + step)
        optimizer.step()
    assert torch.equal(still, torch.ones(3))
    assert torch.equal(moving, joining)
    assert not torch.equal(moving, still)


def refuses_what_it_cannot_do(cls: Factory, case: OptimizerCase) -> None:
    """Sparse and complex gradients and illegal learning rates get one clear line."""
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = cls(embedding.parameters(), **case.settings)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigurationError, match="sparse gradient"):
        optimizer.step()
    with pytest.raises(ConfigurationError, match="complex"):
        cls([nn.Parameter(torch.ones(2, dtype=torch.complex64))], **case.settings)
    for lr in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="lr"):
            cls([nn.Parameter(torch.ones(2))], **{**case.settings, "lr": lr})


def converges(cls: Factory, case: OptimizerCase) -> None:
    """With noisy gradients u·∇f, u uniform in [½, 1½], a quadratic and Rosenbrock's function fall by 90%."""
    settings = {**case.settings, **case.convergent}
    curvature = torch.tensor([10.0, 20.0, 50.0])

    def quadratic(x: Tensor) -> Tensor:
        return (curvature * x**2).sum()

    def rosenbrock(x: Tensor) -> Tensor:
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    for function, start, steps in ((quadratic, [1.0, -2.0, 1.5], 200), (rosenbrock, [-1.2, 1.0], 600)):
        generator = torch.Generator().manual_seed(0)
        x = nn.Parameter(torch.tensor(start))
        optimizer = cls([x], **settings)
        first = function(x).item()
        for _ in range(steps):
            optimizer.zero_grad()
            ((0.5 + torch.rand((), generator=generator)) * function(x)).backward()
            optimizer.step()
        assert function(x).item() < 0.1 * first, function.__name__


def is_untouched_by_a_skipped_step(cls: Factory, case: OptimizerCase) -> None:
    """A step that GradScaler skips leaves no trace."""

    def train(poisoned: bool) -> list[nn.Parameter]:
        params = parameters()
        optimizer = cls(params, **case.settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in (0, None, 1) if poisoned else (0, 1):
            grads = gradients(params, step or 0)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad * (scaler.get_scale() if step is not None else torch.inf)
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
            scaler.update()
        return params

    assert_equal(train(poisoned=True), train(poisoned=False))
