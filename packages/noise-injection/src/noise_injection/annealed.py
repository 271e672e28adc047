"""Gaussian gradient noise whose variance shrinks with the steps."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor

from finetune_common.arguments import explain_arguments
from finetune_common.errors import check_number
from noise_injection import kernels
from noise_injection.attachment import GradientNoise, Plan, Row, reach

__all__ = ["AnnealedGradientNoise"]


@explain_arguments
class AnnealedGradientNoise(GradientNoise):
    """Annealed Gaussian gradient noise, on any torch optimizer.

    G ← G + ε·sqrt(η/(1+t)^γ),  ε ~ N(0, 1) for every element, t = 0 at the first step

    A gradient tensor with an element that is not finite gets no noise. Noise acts after clipping and
    unscaling, and has its own random generator.

    Args:
        optimizer: Any torch optimizer; the noise attaches itself to it.
        eta: Variance η at the first step, in squared units of the gradient, at least 0.
        gamma: How fast the variance shrinks, at least 0.
        seed: Seed of the noise, 0 or a positive integer; the same on all replicas.

    Raises:
        ConfigurationError: A setting is out of its range, or `optimizer` is not an optimizer.

    Examples:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> noise = AnnealedGradientNoise(optimizer, eta=0.01, gamma=0.55, seed=0)
        >>> model(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> noise.remove()

    Source:
        A. Neelakantan et al., Adding Gradient Noise Improves Learning for Very Deep Networks,
        arXiv:1511.06807, equation (1).
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, eta: float = 0.01, gamma: float = 0.55, *, seed: int = 0
    ) -> None:
        check_number("eta", eta, at_least=0, below=inf)
        check_number("gamma", gamma, at_least=0, below=inf)
        super().__init__(optimizer, seed)
        self.eta, self.gamma = eta, gamma

    def plans(self, rows: list[Row]) -> list[Plan]:
        """Every row receives noise."""
        return [Plan(row, kernels.add_plain, []) for row in rows]

    def numbers(self, plans: list[Plan], sums: Tensor, unit: Tensor) -> Tensor:
        """Return each row's standard deviation."""
        try:
            shrunk = (1 + self.steps) ** self.gamma
        except OverflowError:
            shrunk = inf
        deviation = (self.eta / shrunk) ** 0.5
        return (reach(sums, unit, scale_by_norm=False) * unit * deviation).unsqueeze(1)
