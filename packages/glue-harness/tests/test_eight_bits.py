"""Optimizers of bitsandbytes on a CPU: close to their float32 forms, with a quarter of the state."""

import math

import pytest
import torch

from finetune_common.slots import find

pytest.importorskip("bitsandbytes")

STEPS = 20


def trajectory(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> list[torch.Tensor]:
    """Follow a quadratic with a scale for each column."""
    scale = torch.logspace(-1, 1, weight.shape[1])
    seen = []
    for _ in range(STEPS):
        weight.grad = (scale * weight).detach()
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


def lion(weight: torch.Tensor, lr: float, betas: tuple[float, float]) -> list[torch.Tensor]:
    """Chen et al. 2023, algorithm 2, without decay: θ - η sign(β1 m + (1-β1) g), m = β2 m + (1-β2) g."""
    scale = torch.logspace(-1, 1, weight.shape[1])
    theta, momentum, seen = weight.clone(), torch.zeros_like(weight), []
    for _ in range(STEPS):
        gradient = scale * theta
        theta = theta - lr * (betas[0] * momentum + (1 - betas[0]) * gradient).sign()
        momentum = betas[1] * momentum + (1 - betas[1]) * gradient
        seen.append(theta)
    return seen


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("name", ["adamw-8bit", "lion-8bit"])
def test_state_is_in_bytes_and_steps_are_those_of_float32(name: str, paged: bool) -> None:
    """64 x 64 elements are the least that bitsandbytes keeps in 8 bits; paging changes nothing on a CPU."""
    method = find("optimizer", name)
    start = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    model = torch.nn.Linear(64, 64, bias=False)
    model.weight.data.copy_(start)
    groups = [{"params": list(model.named_parameters()), "weight_decay": 0.0}]
    optimizer = method(method.Options(lr=1e-2, paged=paged)).build(model, groups)
    ours = trajectory(optimizer, model.weight)
    state = optimizer.state[model.weight]
    assert {v.dtype for k, v in state.items() if k in ("state1", "state2")} == {torch.uint8}
    if name == "adamw-8bit":
        weight = torch.nn.Parameter(start.clone())
        theirs = trajectory(torch.optim.AdamW([weight], lr=1e-2, weight_decay=0.0), weight)
    else:
        theirs = lion(start, 1e-2, (0.9, 0.99))
    moved = (theirs[-1] - start).norm()
    assert (ours[0] - theirs[0]).norm() < 1e-3 * moved
    assert (ours[-1] - theirs[-1]).norm() < 0.2 * moved
    assert math.isclose((ours[-1] - start).norm(), moved, rel_tol=0.05)
