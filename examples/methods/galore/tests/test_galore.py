"""GaLore against algorithm 2 of its paper, its limit case AdamW, and the kit's contracts of an optimizer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from example_galore.optimizer import GaLore
from example_galore.slots import GaLoreMethod, GaLoreOptions
from finetune_common.errors import ConfigurationError
from finetune_common.testing import OptimizerCase, check_optimizer
from finetune_common.testing.optimizers import CONTRACTS

# --8<-- [start:contracts]
Arrays = list[np.ndarray]
SETTINGS = {"lr": 0.01, "rank": 2, "every": 4, "scale": 0.7, "betas": (0.8, 0.95), "eps": 1e-6}
SETTINGS |= {"weight_decay": 0.1}


def reference(params: Arrays, grads: Arrays, state: dict[str, Any], t: int) -> Arrays:
    """The paper's algorithm 2 in NumPy, by a singular value decomposition, from whichever side is shorter."""
    lr, (beta1, beta2) = SETTINGS["lr"], SETTINGS["betas"]
    new = []
    for i, (w, g) in enumerate(zip(params, grads, strict=True)):
        own = state.setdefault(i, {"m": 0.0, "v": 0.0})
        projected = g.ndim == 2 and min(g.shape) > SETTINGS["rank"]
        left = projected and g.shape[0] <= g.shape[1]
        if projected and t % SETTINGS["every"] == 1:
            u, _, vt = np.linalg.svd(g, full_matrices=False)
            vectors = u[:, : SETTINGS["rank"]] if left else vt[: SETTINGS["rank"]].T
            own["p"] = vectors * np.sign(vectors.sum(axis=0))
        r = (own["p"].T @ g if left else g @ own["p"]) if projected else g
        own["m"] = beta1 * own["m"] + (1 - beta1) * r
        own["v"] = beta2 * own["v"] + (1 - beta2) * r**2
        n = own["m"] / (1 - beta1**t) / (np.sqrt(own["v"] / (1 - beta2**t)) + SETTINGS["eps"])
        if projected:
            n = SETTINGS["scale"] * (own["p"] @ n if left else n @ own["p"].T)
        new.append(w - lr * SETTINGS["weight_decay"] * w - lr * n)
    return new


CASES = [OptimizerCase("rank 2", SETTINGS, reference, {"lr": 0.05, "weight_decay": 0.0})]
HAS = [
    contract
    for contract in CONTRACTS
    if contract.__name__
    in [
        "agrees_with_reference",
        "state_survives",
        "resumes_exactly",
        "takes_a_tensor_learning_rate",
        "leaves_what_has_no_gradient",
        "evaluates_a_closure_once",
        "has_groups",
        "converges",
        "is_untouched_by_a_skipped_step",
    ]
]
"""Not those of what `ElementwiseOptimizer` brings besides: more ways to run, and refusals."""


@pytest.mark.parametrize("check", check_optimizer(GaLore, CASES, HAS))
def test_contracts(check: Callable[[], None]) -> None:
    check()


# --8<-- [end:contracts]


def train(optimizer: torch.optim.Optimizer, param: nn.Parameter, steps: int = 9) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("shape", [(5,), (4, 9), (9, 4)])
def test_without_fewer_dimensions_it_is_adamw(shape: tuple[int, ...]) -> None:
    start = torch.randn(shape)
    ours, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1}
    train(GaLore([ours], rank=4, **settings), ours)
    train(torch.optim.AdamW([plain], **settings), plain)
    torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_its_moments_have_the_shape_of_the_projection(shape: tuple[int, int]) -> None:
    param = nn.Parameter(torch.zeros(shape))
    optimizer = GaLore([param], lr=0.01, rank=2)
    train(optimizer, param, 3)
    state = optimizer.state[param]
    assert {name: tuple(value.shape) for name, value in state.items() if name != "step"} == {
        "projection": (6, 2),
        "m": (2, 9),
        "v": (2, 9),
    }
    assert sum(value.numel() for name, value in state.items() if name != "step") < 2 * param.numel()


def test_between_two_choices_weights_move_in_one_subspace() -> None:
    param = nn.Parameter(torch.zeros(6, 9))
    optimizer = GaLore([param], lr=0.01, rank=2, every=4)
    ranks = []
    for _ in range(8):
        train(optimizer, param, 1) if not ranks else another(optimizer, param, len(ranks))
        ranks.append(int(torch.linalg.matrix_rank(param.detach(), atol=1e-5)))
    assert ranks == [2, 2, 2, 2, 4, 4, 4, 4]


def another(optimizer: torch.optim.Optimizer, param: nn.Parameter, seed: int) -> None:
    param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
    optimizer.step()


def test_the_subspace_is_that_of_the_largest_singular_values() -> None:
    """A gradient of rank 2 is kept whole: at the first step the update is α P sign(Pᵀ G)."""
    torch.manual_seed(0)
    left, right = torch.linalg.qr(torch.randn(6, 2)).Q, torch.linalg.qr(torch.randn(9, 2)).Q
    gradient = left @ torch.diag(torch.tensor([3.0, 2.0])) @ right.t()
    param = nn.Parameter(torch.zeros(6, 9))
    optimizer = GaLore([param], lr=1.0, rank=2, scale=0.5)
    param.grad = gradient
    optimizer.step()
    signs = left @ (left.t() @ gradient).sign()
    torch.testing.assert_close(param.detach(), -0.5 * signs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", -1.0), ("rank", 0), ("every", 0), ("scale", -1.0), ("betas", (0.9, 1.0)), ("eps", 0.0)],
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option):
        GaLoreOptions(**{option: value})


def test_the_method_builds_it_with_its_groups() -> None:
    layer = nn.Linear(2, 2)
    groups = [{"params": [("weight", layer.weight)], "weight_decay": 0.1}, {"params": [("bias", layer.bias)]}]
    optimizer = GaLoreMethod(GaLoreOptions(lr=0.3, rank=7)).build(layer, groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [group["rank"] for group in optimizer.param_groups] == [7, 7]
