"""Linear maps whose matrix is a sum of Kronecker products, for `Compacter`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.adapters import Adapter
from parameter_efficient.attachment import DeviceAndDtype
from parameter_efficient.configs import Compacter

__all__ = ["KroneckerLinear", "compact"]


class KroneckerLinear(nn.Module):
    """y = (Σ_i A_i ⊗ s_i t_iᵀ) x + b.

    Args:
        shared: The A_i, of shape (n, n, n).
        inputs: Width of x, a multiple of n.
        outputs: Width of y, a multiple of n.
    """

    def __init__(self, shared: nn.Parameter, inputs: int, outputs: int) -> None:
        super().__init__()
        n, place = len(shared), DeviceAndDtype(device=shared.device, dtype=shared.dtype)
        if inputs % n or outputs % n:
            raise ConfigurationError(
                f"divisions={n} does not divide the widths {inputs} and {outputs}: choose a divisor of both"
            )
        self.shared = shared
        self.left = nn.Parameter(torch.zeros(n, outputs // n, **place))
        self.right = nn.Parameter(torch.zeros(n, inputs // n, **place))
        self.bias = nn.Parameter(torch.zeros(outputs, **place))

    @property
    def weight(self) -> Tensor:
        """Return the matrix, of shape (outputs, inputs)."""
        n = len(self.shared)
        product = torch.einsum("iab,ic,id->acbd", self.shared, self.left, self.right)
        return product.reshape(n * self.left.shape[1], n * self.right.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """Return y, of shape (…, outputs)."""
        return nn.functional.linear(x, self.weight, self.bias)


def compact(adapters: Iterable[Adapter], config: Compacter, generator: torch.Generator) -> Iterator[Adapter]:
    """Give adapters maps of this kind that share their A_i; each is yielded first and changed afterwards.

    The A_i and s_i are drawn from N(0, 1/n), and the t_i of D such that D's elements have about `init_std`.
    """
    n = config.divisions
    shared: nn.Parameter | None = None
    for adapter in adapters:
        yield adapter
        weight = adapter.down.weight
        if shared is None:
            drawn = torch.randn(n, n, n, generator=generator) / n**0.5
            shared = nn.Parameter(drawn.to(weight))
        bottleneck, width = weight.shape
        for name, inputs, outputs in (("down", width, bottleneck), ("up", bottleneck, width)):
            linear = KroneckerLinear(shared, inputs, outputs)
            with torch.no_grad():
                linear.left.copy_(torch.randn(linear.left.shape, generator=generator) / n**0.5)
                if name == "down":
                    linear.right.copy_(
                        torch.randn(linear.right.shape, generator=generator) * config.init_std * n**0.5
                    )
            setattr(adapter, name, linear)
