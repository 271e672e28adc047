"""Bottleneck adapters: small networks behind or beside a sub-layer."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import DeviceAndDtype, Resident, place_of_new
from parameter_efficient.blocks import is_projection, width_out
from parameter_efficient.configs import BottleneckAdapter
from parameter_efficient.forward import first_tensor

__all__ = ["Adapter", "LayerOutput", "attach_adapter", "attach_behind", "first_of", "with_first"]

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}

LayerOutput = Tensor | tuple[Any, ...]
"""Hidden states, alone or before other outputs of a layer."""


class LinearMap(Protocol):
    """y = W x + b, with W kept as a matrix or made of smaller ones."""

    @property
    def weight(self) -> Tensor:
        """W."""
        ...

    @property
    def bias(self) -> Tensor:
        """b."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Return y."""
        ...


class _Unset(nn.Linear):
    """A linear map whose values the adapter sets: it draws no random number, and works on fake tensors."""

    def reset_parameters(self) -> None:
        """Draw nothing."""


class Adapter(Resident):
    """The network a(h) of `BottleneckAdapter`.

    Args:
        width: d, elements of h.
        config: Everything else.
        generator: Draws the down-projection.
        place: Device and dtype.
    """

    reason = "it is not a linear function of its input"

    def __init__(
        self, width: int, config: BottleneckAdapter, generator: torch.Generator, place: DeviceAndDtype
    ) -> None:
        super().__init__()
        self.scaling = config.scaling
        self.down: LinearMap = _Unset(width, config.bottleneck, **place)
        self.up: LinearMap = _Unset(config.bottleneck, width, **place)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        affine = config.elementwise_affine
        self.norm = nn.LayerNorm(width, elementwise_affine=affine, **place) if config.layer_norm else None
        drawn = torch.randn(config.bottleneck, width, generator=generator) * config.init_std
        with torch.no_grad():
            self.down.weight.copy_(drawn)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def update(self, h: Tensor) -> Tensor:
        """Return the update of h, in the adapter's dtype: s · dropout(U φ(D h + b_D) + b_U)."""
        h = h.to(self.down.bias.dtype)
        return self.scaling * self.dropout(self.up(self.activation(self.down(h))))

    def forward(self, h: Tensor) -> Tensor:
        """Return a(h), of h's shape (…, d) and dtype."""
        adapted = h + self.update(h)
        return (adapted if self.norm is None else self.norm(adapted.to(self.down.bias.dtype))).to(h.dtype)

    def difference(self, h: Tensor) -> Tensor:
        """Return a(h) - h."""
        return self.update(h).to(h.dtype) if self.norm is None else self.forward(h) - h

    def after(self, module: nn.Module, args: object, output: LayerOutput) -> LayerOutput:
        """Forward hook: replace the output by a(output)."""
        return with_first(output, self(first_of(output)))

    def enter(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Forward pre-hook of a sub-layer's first module, whose input is h."""
        h = first_tensor((args, kwargs))
        assert h is not None
        self._pending = self.difference(h)

    def join(self, module: nn.Module, args: object, output: LayerOutput) -> LayerOutput:
        """Forward hook of a sub-layer's last module: add a(h) - h to the output."""
        hidden = first_of(output)
        return with_first(output, hidden + self._take_pending().view_as(hidden).to(hidden.dtype))

    def exchange(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Forward pre-hook of the norm behind the sub-layer: the residual h becomes a(h); opt flattens h."""
        return (args[0] + self._take_pending().view_as(args[0]).to(args[0].dtype), *args[1:])

    def _take_pending(self) -> Tensor:
        pending, self._pending = self._pending, None
        assert pending is not None  # the sub-layer's first module was called
        return pending


def first_of(output: LayerOutput) -> Tensor:
    """Return the first of several outputs."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: LayerOutput, hidden: Tensor) -> LayerOutput:
    """Return outputs with another first one."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def attach_adapter(
    layer: Layer, config: BottleneckAdapter, generator: torch.Generator, chunked: bool
) -> Adapter:
    """Put an adapter into a layer.

    Args:
        layer: The layer.
        config: The adapter's configuration.
        generator: Draws its parameters.
        chunked: Whether the model runs its feed-forward blocks in chunks.

    Raises:
        ConfigurationError: The sub-layer's end cannot be found with certainty, or its blocks are chunked.
    """
    if config.position not in layer.sublayers:
        raise ConfigurationError(
            f"position={config.position!r}: cannot tell for certain where this sub-layer of {layer.name} "
            f"({type(layer.module).__name__}) ends: give targets=, the modules behind which to put adapters"
        )
    sublayer = layer.sublayers[config.position]
    if config.parallel and chunked and sublayer.norm:
        raise ConfigurationError(
            "parallel=true does not work with chunked feed-forward blocks: set chunk_size_feed_forward=0 "
            "in the model's configuration, or use parallel=false"
        )
    entry, end = (layer.module.get_submodule(name) for name in (sublayer.entry, sublayer.exit))
    norm = layer.module.get_submodule(sublayer.norm) if sublayer.norm else None
    adapter = Adapter(layer.width, config, generator, place_of_new(config.dtype, end, layer.module))
    adapter.settle(layer.module, f"{config.position}_adapter")
    if config.parallel:
        adapter.act_through(entry.register_forward_pre_hook, adapter.enter, with_kwargs=True)
    if not config.parallel:
        adapter.act_through((norm or end).register_forward_hook, adapter.after)
    elif norm is not None:
        adapter.act_through(norm.register_forward_pre_hook, adapter.exchange)
    else:
        adapter.act_through(end.register_forward_hook, adapter.join)
    return adapter


def attach_behind(
    model: nn.Module, name: str, module: nn.Module, config: BottleneckAdapter, generator: torch.Generator
) -> Adapter:
    """Put an adapter behind a module that is given by name."""
    weight = getattr(module, "weight", None)
    if is_projection(module):
        width = width_out(module)
    elif weight is not None:
        width = weight.numel()
    else:
        raise ConfigurationError(
            f"targets: {name} ({type(module).__name__}) has no weight, so its width is unknown: name a "
            "matrix or a norm"
        )
    adapter = Adapter(width, config, generator, place_of_new(config.dtype, module))
    parent, _, attribute = name.rpartition(".")
    adapter.settle(model.get_submodule(parent), f"{attribute}_adapter")
    adapter.act_through(module.register_forward_hook, adapter.after)
    return adapter
