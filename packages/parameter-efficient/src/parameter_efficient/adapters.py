"""Bottleneck adapters: small networks behind or beside a sub-layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import Resident, place_of
from parameter_efficient.configs import BottleneckAdapter

__all__ = ["Adapter", "attach_adapter"]

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Adapter(Resident):
    """The network a(h) of `BottleneckAdapter`.

    Args:
        width: d, elements of h.
        config: Everything else.
        generator: Draws the down-projection.
        place: Device and dtype.
    """

    reason = "it is no linear function of its input"

    def __init__(
        self, width: int, config: BottleneckAdapter, generator: torch.Generator, place: dict[str, Any]
    ) -> None:
        super().__init__()
        self.scaling = config.scaling
        self.down: Any = nn.utils.skip_init(nn.Linear, width, config.bottleneck, **place)
        self.up: Any = nn.utils.skip_init(nn.Linear, config.bottleneck, width, **place)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(width, **place) if config.layer_norm else None
        drawn = torch.randn(config.bottleneck, width, generator=generator) * config.init_std
        with torch.no_grad():
            self.down.weight.copy_(drawn)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def update(self, h: Tensor) -> Tensor:
        """Return what is added to h: s · dropout(U φ(D h + b_D) + b_U)."""
        return self.scaling * self.dropout(self.up(self.activation(self.down(h))))

    def forward(self, h: Tensor) -> Tensor:
        """Return a(h), of h's shape (…, d)."""
        adapted = h + self.update(h)
        return adapted if self.norm is None else self.norm(adapted)

    def difference(self, h: Tensor) -> Tensor:
        """Return a(h) - h."""
        return self.update(h) if self.norm is None else self.forward(h) - h

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook: a(output) in the place of the output."""
        return _replaced(output, self(_first(output)))

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of a sub-layer's first module: what it takes is h."""
        self._pending = self.difference(args[0] if args else kwargs["hidden_states"])

    def join(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Forward hook of a sub-layer's last module: a(h) - h is added to the output."""
        return _replaced(output, _first(output) + self._leave())

    def exchange(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of the norm behind the sub-layer: the residual h becomes a(h); opt flattens h."""
        return (args[0] + self._leave().view_as(args[0]), *args[1:])

    def _leave(self) -> Tensor:
        pending, self._pending = self._pending, None
        return pending


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _replaced(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def attach_adapter(
    layer: Layer, config: BottleneckAdapter, generator: torch.Generator, chunked: bool
) -> Adapter:
    """Put an adapter into a layer.

    Args:
        layer: Where.
        config: What.
        generator: Draws its parameters.
        chunked: Whether the model runs its feed-forward blocks in chunks.
    """
    if config.parallel and chunked and not layer.norm_first:
        raise ConfigurationError(
            "parallel=true does not work with chunked feed-forward blocks: set chunk_size_feed_forward=0 "
            "in the model's configuration, or use parallel=false"
        )
    norm = layer.one(f"{config.position}_norm")
    first, last = _ends(layer, config.position)
    adapter = Adapter(norm.weight.shape[0], config, generator, _place(layer, config))
    adapter.settle(layer.module, f"{config.position}_adapter")
    if config.parallel:
        adapter.act_through(first.register_forward_pre_hook(adapter.enter, with_kwargs=True))
    if config.parallel and not layer.norm_first:
        adapter.act_through(norm.register_forward_pre_hook(adapter.exchange))
    elif config.parallel:
        adapter.act_through(last.register_forward_hook(adapter.join))
    else:
        adapter.act_through((last if layer.norm_first else norm).register_forward_hook(adapter.after))
    return adapter


def _ends(layer: Layer, position: str) -> tuple[nn.Module, nn.Module]:
    """Return a sub-layer's first and last module: one and the same where it is a block of its own."""
    if position in layer.roles:
        return layer.one(position), layer.one(position)
    return layer.one("ffn_in"), layer.one("ffn_out")


def _place(layer: Layer, config: BottleneckAdapter) -> dict[str, Any]:
    """Return device and dtype of h: t5 in float16 has float32 behind its feed-forward block."""
    if config.parallel or not layer.norm_first:
        return place_of(layer.module)
    return place_of(layer.one("ffn_out" if config.position == "ffn" else "o"), layer.module)
