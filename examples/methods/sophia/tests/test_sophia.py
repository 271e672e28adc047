"""Sophia against algorithms 1 and 3 of its paper, and the kit's contracts of an optimizer."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn.functional import scaled_dot_product_attention

from example_sophia.optimizer import Sophia
from example_sophia.slots import SophiaMethod, SophiaOptions
from finetune_common.errors import ConfigurationError
from finetune_common.testing import OptimizerCase, check_optimizer, run_two_processes
from finetune_common.testing.optimizers import CONTRACTS

Arrays = list[np.ndarray]
CURVATURE = 3.0


class OnQuadratic(Sophia):
    """Sophia whose steps are told of a quadratic loss, Σ 3 θ²/2, as a run tells it of its own."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        number = 1 + max((int(own["step"]) for own in self.state.values() if "step" in own), default=0)
        sign = -1 if self.defaults["maximize"] else 1
        params = [p for group in self.param_groups for p in group["params"]]
        with torch.enable_grad():
            self.after_backward(number, lambda: sum(sign * CURVATURE * p.square().sum() / 2 for p in params))
        return super().step(closure)


def reference(
    every: int | None, lr: float, betas: tuple[float, float], gamma: float, weight_decay: float, seed: int
) -> Callable[..., Arrays]:
    """The paper's algorithm 3 in NumPy: H u = 3 u on the quadratic; without `every` nothing is estimated."""

    def step(params: Arrays, grads: Arrays, state: dict[str, Any], t: int) -> Arrays:
        if t == 1:
            state["m"], state["h"] = ([np.zeros_like(p) for p in params] for _ in range(2))
        if every is not None and t % every == 1 % every:
            random = torch.Generator().manual_seed(1_000_003 * seed + t)
            for h in state["h"]:
                u = torch.randn(h.shape, generator=random).double().numpy()
                h[...] = betas[1] * h + (1 - betas[1]) * u * CURVATURE * u
        new = []
        for p, g, m, h in zip(params, grads, state["m"], state["h"], strict=True):
            m[...] = betas[0] * m + (1 - betas[0]) * g
            p = p - lr * weight_decay * p
            new.append(p - lr * np.clip(m / np.maximum(gamma * h, 1e-12), -1, 1))
        return new

    return step


def cases(every: int | None, **costs: Any) -> list[OptimizerCase]:
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "gamma": 0.3, "weight_decay": 0.1, "seed": 5}
    told = settings if every is None else settings | {"every": every}
    return [
        OptimizerCase(
            "decayed", told, reference(every, **settings), {"lr": 0.02, "weight_decay": 0.0}, **costs
        )
    ]


@pytest.mark.parametrize("check", check_optimizer(Sophia, cases(None, costly=True)))
def test_contracts_without_an_estimate(check: Callable[[], None]) -> None:
    check()


WITH_ESTIMATES = [
    contract
    for contract in CONTRACTS
    if contract.__name__
    in [
        "agrees_with_reference",
        "foreach_equals_reference",
        "state_survives",
        "resumes_exactly",
        "takes_a_tensor_learning_rate",
        "maximizes",
        "converges",
        "is_untouched_by_a_skipped_step",
    ]
]
"""Those that take no two parameters for twins: here each has a u of its own."""


@pytest.mark.parametrize("check", check_optimizer(OnQuadratic, cases(3), WITH_ESTIMATES))
def test_contracts_with_estimates(check: Callable[[], None]) -> None:
    check()


class Attention(nn.Module):
    """A loss that is not quadratic, through the attention whose fused kinds have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.into = nn.Parameter(torch.randn(4, 12) / 2)
        self.out = nn.Parameter(torch.randn(4) / 2)
        self.rows = torch.randn(3, 1, 5, 4)

    def loss(self, rows: torch.Tensor | None = None, *own: torch.Tensor) -> torch.Tensor:
        into, out = own or (self.into, self.out)
        rows = self.rows if rows is None else rows
        query, key, value = (rows @ into).split(4, dim=-1)
        return (scaled_dot_product_attention(query, key, value) @ out).square().mean()


def estimated(model: Attention, seed: int = 0, step: int = 1) -> torch.Tensor:
    optimizer = Sophia(model.parameters(), lr=0.1, every=1, seed=seed)
    model.loss().backward()
    optimizer.after_backward(step, model.loss)
    return torch.cat([optimizer.fresh[p].flatten() for p in model.parameters()])


def hessian(model: Attention) -> torch.Tensor:
    """The whole matrix, column by column, from differences of gradients in float64."""
    sizes = [p.numel() for p in model.parameters()]
    start = torch.cat([p.detach().flatten() for p in model.parameters()]).double()

    def gradient(point: torch.Tensor) -> torch.Tensor:
        point = point.clone().requires_grad_()
        into, out = point.split(sizes)
        model.loss(model.rows.double(), into.view(4, 12), out).backward()
        return point.grad

    basis = torch.eye(len(start), dtype=torch.float64) * 1e-5
    return torch.stack([(gradient(start + e) - gradient(start - e)) / 2e-5 for e in basis])


def test_an_estimate_is_u_times_h_u() -> None:
    model = Attention()
    random = torch.Generator().manual_seed(4)  # seed 0, step 4
    u = torch.cat([torch.randn(p.shape, generator=random).flatten() for p in model.parameters()]).double()
    expected = u * (hessian(model) @ u)
    torch.testing.assert_close(estimated(model, step=4), expected.float(), rtol=1e-4, atol=1e-5)


def test_estimates_average_to_the_diagonal() -> None:
    """E[u ⊙ H u] = diag H: 1,000 estimates, each coordinate within 5 standard errors."""
    model = Attention()
    found = torch.stack([estimated(model, seed) for seed in range(1_000)]).double()
    error = found.std(dim=0) / math.sqrt(len(found))
    assert ((found.mean(dim=0) - hessian(model).diagonal()).abs() < 5 * error + 1e-6).all()


def test_the_loss_is_asked_for_every_k_steps() -> None:
    model, asked = Attention(), []
    optimizer = Sophia(model.parameters(), lr=0.1, every=3)
    for step in range(1, 9):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.after_backward(step, lambda step=step: asked.append(step) or model.loss())
        optimizer.step()
    assert asked == [1, 4, 7]


def test_what_it_draws_is_its_own_and_differs_from_step_to_step() -> None:
    model = Attention()
    before = torch.get_rng_state()
    first, again, other, seeded = (
        estimated(model, seed, step) for seed, step in ((0, 1), (0, 1), (0, 11), (1, 1))
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seeded)


def test_gradients_and_frozen_parameters_are_left_alone() -> None:
    model = Attention()
    model.out.requires_grad_(False)
    optimizer = Sophia(model.parameters(), lr=0.1)
    model.loss().backward()
    before = model.into.grad.clone()
    optimizer.after_backward(1, model.loss)
    assert torch.equal(model.into.grad, before)
    assert model.out not in optimizer.fresh


def test_no_coordinate_moves_by_more_than_the_learning_rate() -> None:
    """Where the curvature is 0 or below, the step is the sign of the momentum (section 2.2)."""
    params = [nn.Parameter(torch.randn(50)), nn.Parameter(torch.randn(50))]
    before = [p.detach().clone() for p in params]
    optimizer = Sophia(params, lr=0.1)
    (params[0].square().sum() - 3 * params[1].square().sum()).backward()
    optimizer.after_backward(1, lambda: params[0].square().sum() - 3 * params[1].square().sum())
    optimizer.step()
    assert all(((p - b).abs() <= 0.1 + 1e-6).all() for p, b in zip(params, before, strict=True))
    torch.testing.assert_close(params[1].detach(), before[1] + 0.1 * before[1].sign())


def _curvature_is_of_all_rows(rank: int) -> None:
    model = Attention()
    torch.manual_seed(5)
    parts = torch.randn(2, 3, 1, 5, 4)
    model.loss(parts[rank]).backward()
    optimizer = Sophia(model.parameters(), lr=0.1)
    optimizer.after_backward(1, lambda: model.loss(parts[rank]))
    own = torch.cat([optimizer.fresh[p].flatten() for p in model.parameters()])
    both = [torch.empty_like(own) for _ in range(2)]
    distributed.all_gather(both, own)
    assert torch.equal(*both)
    model.rows = parts.flatten(0, 1)
    u = torch.Generator().manual_seed(1)
    u = torch.cat([torch.randn(p.shape, generator=u).flatten() for p in model.parameters()]).double()
    torch.testing.assert_close(own, (u * (hessian(model) @ u)).float(), rtol=1e-4, atol=1e-5)


def test_two_processes_have_the_curvature_of_all_rows() -> None:
    run_two_processes(_curvature_is_of_all_rows)


@pytest.mark.parametrize(
    ("option", "value"), [("lr", -1.0), ("betas", (0.9, 1.0)), ("gamma", 0.0), ("every", 0)]
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        SophiaOptions(**{option: value})


def test_the_method_builds_it_with_its_groups() -> None:
    layer = nn.Linear(2, 2)
    groups = [{"params": [("weight", layer.weight)], "weight_decay": 0.1}, {"params": [("bias", layer.bias)]}]
    optimizer = SophiaMethod(SophiaOptions(lr=0.3, every=7)).build(layer, groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in optimizer.param_groups] == [0.3, 0.3]
    assert optimizer.defaults["every"] == 7
