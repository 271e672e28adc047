"""LoReFT: hidden states that are changed in a small subspace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.adapters import first_of, with_first
from parameter_efficient.attachment import Resident, place_of_new
from parameter_efficient.configs import LoReFT

__all__ = ["Subspace", "attach_subspace"]


class Subspace(Resident):
    """The map h + Rᵀ (W h + b - R h) of `LoReFT`.

    R holds the orthonormal rows of a free matrix of the same shape, by QR with a positive diagonal: any value
    of that matrix is allowed, and its gradient is R's.

    Args:
        width: d.
        config: Everything else.
        generator: Draws the free matrix.
        place: Device and dtype.
    """

    reason = "it acts on hidden states, not in a matrix"

    def __init__(self, width: int, config: LoReFT, generator: torch.Generator, place: dict[str, Any]) -> None:
        super().__init__()
        if config.rank > width:
            raise ConfigurationError(f"rank={config.rank} is above the model's width: give 1 to {width}")
        self.first = config.first
        self.free = nn.Parameter(torch.randn(config.rank, width, generator=generator).to(**place))
        self.source = nn.Linear(width, config.rank, device="meta")
        self.source.weight = nn.Parameter(self.rows().detach().clone())
        self.source.bias = nn.Parameter(torch.zeros(config.rank, **place))

    def rows(self) -> Tensor:
        """Return R, of shape (r, d)."""
        q, r = torch.linalg.qr(self.free.float().T)
        return (q * r.diagonal().sign()).T.to(self.free.dtype)

    def forward(self, h: Tensor) -> Tensor:
        """Return h', of h's shape (batch, tokens, d) and dtype."""
        own, rows = h[:, : self.first].to(self.free.dtype), self.rows()
        inner = nn.functional.linear(own, self.source.weight - rows, self.source.bias)
        changed = (own + inner @ rows).to(h.dtype)
        return changed if self.first is None else torch.cat([changed, h[:, self.first :]], dim=1)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook: h' in the place of a layer's output."""
        return with_first(output, self(first_of(output)))


def attach_subspace(layer: Any, config: LoReFT, generator: torch.Generator, width: int) -> Subspace:
    """Put one behind a layer (`architecture.Layer`)."""
    made = Subspace(width, config, generator, place_of_new(config.dtype, layer.module))
    made.settle(layer.module, "loreft")
    made.act_through(layer.module.register_forward_hook, made.after)
    return made
