"""Sophia-H: the optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel

from finetune_common.optim import ElementwiseOptimizer, arithmetic_dtype
from finetune_common.optim.ops import add_scaled, clamp, lerp


def sophia(p, g, m, h, *fresh, lr, beta1, beta2, gamma, decay) -> tuple[Any, Any, Any]:
    """Return the new parameter, momentum and curvature; `fresh` is this step's estimate, if there is one."""
    m = lerp(g, m, beta1)
    for estimate in fresh:
        h = lerp(estimate, h, beta2)
    step = clamp(m / clamp(h * gamma, 1e-12, float("inf")), -1.0, 1.0)
    return add_scaled(p * decay, step, -lr), m, h


class Sophia(ElementwiseOptimizer):
    """Momentum over curvature; no coordinate moves by more than the learning rate (and its decay).

    m_t = β₁ m_{t-1} + (1-β₁) g_t
    h_t = β₂ h_{t-1} + (1-β₂) u ⊙ (H u), u ~ N(0, I), at steps 1, k+1, 2k+1, …; else h_{t-1}
    θ_t = (1 - η λ) θ_{t-1} - η clip(m_t / max(γ h_t, 1e-12), -1, 1)

    Arguments are those of `SophiaOptions`, and of `ElementwiseOptimizer`. Source: Liu et al. 2023,
    algorithms 1 (Hutchinson's estimate) and 3.
    """

    fresh: Mapping[Tensor, Tensor] = {}  # this step's estimates

    def __init__(
        self, params, lr, betas=(0.96, 0.99), gamma=0.01, weight_decay=0.0, every=10, seed=0, **more
    ) -> None:
        own = {"gamma": gamma, "every": every, "seed": seed}
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay} | own, **more)

    def rule(self, group: Mapping[str, Any]) -> tuple[Callable[..., tuple[Any, ...]], Mapping[str, Any]]:
        """Return the equations above."""
        return sophia, {}

    def initial_state(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        """Both averages start at 0."""
        return {"m": 0.0, "h": 0.0}

    def scalars(self, group: Mapping[str, Any], step: int) -> Mapping[str, float]:
        """Return the numbers of a step."""
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        decay = 1 - lr * group["weight_decay"]
        return {"lr": lr, "beta1": beta1, "beta2": beta2, "gamma": group["gamma"], "decay": decay}

    def inputs(self, group: Mapping[str, Any], param: Tensor) -> tuple[Tensor, ...]:
        """Return this step's estimate of a parameter's curvature, if there is one."""
        return (self.fresh[param],) if self.fresh else ()

    def after_backward(self, step: int, loss_fn: Callable[[], Tensor]) -> None:
        """Estimate the curvature where it is time to; u is a function of seed and step, equal everywhere."""
        self.fresh = {}
        trained = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if (step - 1) % self.defaults["every"] or not trained:
            return
        random = torch.Generator().manual_seed(1_000_003 * self.defaults["seed"] + step)
        params = [p for _, p in trained]
        with sdpa_kernel(SDPBackend.MATH):  # the fused kinds of attention have no second derivative
            slopes = torch.autograd.grad(loss_fn(), params, create_graph=True, materialize_grads=True)
            u = [torch.randn(p.shape, generator=random).to(p) for p in params]
            slope = torch.stack([(g * own).sum() for g, own in zip(slopes, u, strict=True)]).sum()
            products = torch.autograd.grad(slope, params, materialize_grads=True)
        for (group, p), own, product in zip(trained, u, products, strict=True):
            if distributed.is_initialized():  # each process has other rows, and all must take one step
                distributed.all_reduce(product.div_(distributed.get_world_size()))
            curvature = own * (-product if group["maximize"] else product)
            self.fresh[p] = curvature.to(arithmetic_dtype(p.dtype))
