"""Gradients that are known exactly: the loss Σ p·c adds c to the gradient of p."""

from collections.abc import Sequence

import torch
from torch import Tensor

from noise_injection import AnnealedGradientNoise


def contribute(param: Tensor, value: Tensor) -> None:
    (param * value).sum().backward()


def standard_normal(param: Tensor, seed: int = 0) -> Tensor:
    """ε of the first step: what annealed noise of variance 1 adds with the same seed."""
    probe = torch.nn.Parameter(torch.zeros_like(param))
    optimizer = torch.optim.SGD([probe], lr=1.0)
    AnnealedGradientNoise(optimizer, eta=1.0, gamma=0.0, seed=seed)
    probe.grad = torch.zeros_like(probe)
    optimizer.step()
    return probe.grad


def explicit_variance(contributions: Sequence[Tensor]) -> Tensor:
    """Unbiased variance of u_i = N·c_i, in float64."""
    return (len(contributions) * torch.stack(list(contributions)).double()).var(dim=0, unbiased=True)
