"""LoReFT: hidden states that are changed in a small subspace."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Protocol, cast

import torch
from torch import Generator, Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.adapters import LayerOutput, first_of, with_first
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import DeviceAndDtype, Resident, place_of_new
from parameter_efficient.configs import LoReFT

__all__ = ["Subspace", "Tokens", "attach_subspaces"]


class Subspace(Resident):
    """The map h + Rᵀ (W h + b - R h) of `LoReFT`.

    R holds the orthonormal rows of a free matrix of the same shape, by QR with a positive diagonal: any value
    of that matrix is allowed, and its gradient is R's.

    Args:
        width: d.
        config: Rank and positions.
        generator: Draws the free matrix.
        place: Device and dtype.
    """

    reason = "it acts on hidden states, not in a matrix"

    def __init__(self, width: int, config: LoReFT, generator: Generator, place: DeviceAndDtype) -> None:
        super().__init__()
        if config.rank > width:
            raise ConfigurationError(f"rank={config.rank} is above the model's width: give 1 to {width}")
        self.free = nn.Parameter(torch.randn(config.rank, width, generator=generator).to(**place))
        self.source = nn.Linear(width, config.rank, device="meta")
        self.source.weight = nn.Parameter(self.rows().detach().clone())
        self.source.bias = nn.Parameter(torch.zeros(config.rank, **place))

    def rows(self) -> Tensor:
        """Return R, of shape (r, d)."""
        q, r = cast("tuple[Tensor, Tensor]", torch.linalg.qr(self.free.float().T))  # pyright: ignore
        return (q * r.diagonal().sign()).T.to(self.free.dtype)

    def forward(self, h: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Return h', of h's shape (batch, tokens, d) and dtype; only at chosen tokens of (batch, tokens)."""
        x, rows = h.to(self.free.dtype), self.rows()
        inner = nn.functional.linear(x, self.source.weight - rows, self.source.bias)
        changed = (x + inner @ rows).to(h.dtype)
        return changed if chosen is None else torch.where(chosen[..., None], changed, h)


class Past(Protocol):
    """A cache of earlier tokens."""

    def get_seq_length(self) -> int:
        """Return how many tokens it holds."""
        ...


class Tokens:
    """Which tokens of a row are its first and last ones; padding, on either side, does not count.

    Args:
        first: p.
        last: s.
        decoder: Whether to choose tokens of the decoder.
    """

    def __init__(self, first: int, last: int, decoder: bool) -> None:
        self._counts, self._name = (first, last), "decoder_attention_mask" if decoder else "attention_mask"
        self._mask: Tensor | None = None
        self._continues = False

    def keep(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Forward pre-hook of the base model: keep its mask, and whether it continues a text."""
        arguments = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        self._mask = cast("Tensor | None", arguments.get(self._name))
        # Known by what it can do: transformers calls it past_key_values, and from 5.24 on cache.
        caches = [cast(Past, value) for value in arguments.values() if hasattr(value, "get_seq_length")]
        self._continues = any(cache.get_seq_length() > 0 for cache in caches)

    def chosen(self, h: Tensor) -> Tensor:
        """Return which tokens of hidden states (batch, tokens, d) to change, as booleans (batch, tokens).

        Raises:
            ConfigurationError: The mask has no entry for each token.
        """
        if self._continues:
            return torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
        mask = self._mask
        real = torch.ones(h.shape[:2], device=h.device, dtype=torch.long) if mask is None else mask.long()
        if real.shape != h.shape[:2]:
            raise ConfigurationError(
                f"positions={list(self._counts)} needs an attention mask of shape {tuple(h.shape[:2])}, "
                f"not {tuple(real.shape)}: use positions='all'"
            )
        number, (first, last) = real.cumsum(1), self._counts
        near = (number <= first) | (number > real.sum(1, keepdim=True) - last)
        return near & real.bool()


def attach_subspaces(
    model: nn.Module, layers: list[Layer], config: LoReFT, generator: Generator
) -> Iterator[Subspace]:
    """Put one behind each layer."""
    base: nn.Module = getattr(model, "base_model", model)
    for layer in layers:
        made = Subspace(layer.width, config, generator, place_of_new(config.dtype, layer.module))
        made.settle(layer.module, "loreft")
        tokens = None
        if config.positions != "all":
            tokens = Tokens(*config.positions, decoder="cross_v" in layer.roles)
            made.act_through(base.register_forward_pre_hook, tokens.keep, with_kwargs=True)
        made.act_through(layer.module.register_forward_hook, partial(_after, made, tokens))
        yield made


def _after(
    subspace: Subspace, tokens: Tokens | None, module: nn.Module, args: object, output: LayerOutput
) -> LayerOutput:
    """Forward hook: replace a layer's output by h'."""
    h = first_of(output)
    return with_first(output, subspace(h, None if tokens is None else tokens.chosen(h)))
