"""Prefix tuning: learned keys and values before those of the tokens.

Attention modules of transformers look up the function that computes attention in a table. A prefixed module
gets a function from here, which prepends and then calls the model's own choice. Other modules compute
attention themselves (`custom_attention`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import place_of_new
from parameter_efficient.blocks import width_out
from parameter_efficient.configs import PrefixTuning
from parameter_efficient.custom_attention import (
    OWN_SCORES,
    Cached,
    Lengthened,
    cached_widths,
    reach_of_one_token,
    takes_averages,
)
from parameter_efficient.forward import Inputs, outputs_of, undisturbed, valueless
from parameter_efficient.prefix import Prefix

__all__ = ["attach_prefixes", "implementation_of"]

NAME = "prefix_tuning"

AttentionFunction = Callable[..., object]
"""(module, query, key, value, mask, …) → outputs and weights; query, key and value in heads."""


def _register(function: AttentionFunction) -> None:
    """Put a function into transformers' table, under `NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, function)  # pyright: ignore[reportUnknownMemberType]


def _register_prefixed() -> None:
    """Register `_prefixed_attention` with its table: compilers of torch 2.9 and 2.10 follow no import."""
    from transformers import AttentionInterface

    table = cast("Mapping[str, AttentionFunction]", AttentionInterface())
    _register(partial(_prefixed_attention, table))


class _SeparateConfiguration:
    """Gives an attention module a copy of its configuration that names the function `NAME`."""

    def __init__(self, attention: nn.Module) -> None:
        self.attention = attention
        self.shared: Any = attention.config
        separate = copy.copy(self.shared)
        separate._attn_implementation = NAME
        self._set(separate)

    def _set(self, config: object) -> None:
        vars(self.attention)["config"] = config

    def remove(self) -> None:
        self._set(self.shared)


def implementation_of(model_config: object) -> str:
    """Return the name of a model's attention function now: `set_attn_implementation` may have changed it."""
    name: str = getattr(model_config, "_attn_implementation", None) or "eager"
    if name not in ("eager", "sdpa") and "flash" not in name:
        raise ConfigurationError(
            f"a prefix does not work with attention {name!r}: load the model with attn_implementation='sdpa'"
        )
    return name


def _prefixed_attention(
    table: Mapping[str, AttentionFunction],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: object,
) -> object:
    """Prepend, and call the function of the model's own choice."""
    prefix = module.prefix
    assert isinstance(prefix, Prefix)
    implementation = implementation_of(prefix.model_config)
    # Eager attention is a function of each model's own Python module; the table has the others.
    modeling = sys.modules[type(module).__module__]
    function = modeling.eager_attention_forward if implementation == "eager" else table[implementation]
    tokens, queries = key.shape[2], query.shape[2]
    if attention_mask is not None:
        attention_mask = prefix.open_mask(attention_mask)
    elif implementation == "sdpa" and getattr(module, "is_causal", False) and queries > 1:
        causal = torch.ones(1, 1, queries, tokens, dtype=torch.bool, device=key.device).tril(tokens - queries)
        attention_mask = prefix.open_mask(causal)
    if isinstance(position_bias := kwargs.get("position_bias"), Tensor):
        kwargs["position_bias"] = F.pad(position_bias, (prefix.length, 0))
    key, value = prefix.prepend(prefix.keys, key), prefix.prepend(prefix.values, value)
    return function(module, query, key, value, attention_mask, **kwargs)


Widths = tuple[int, int]
"""Elements of a token's key, and of its value, in all heads."""


def _through_table(
    layers: list[Layer], model: nn.Module, inputs: Inputs
) -> dict[str, tuple[nn.Module, Widths]]:
    """Return, by layer, the module that looks up its self-attention in the table, and its widths.

    The widths are read in a forward pass: if several queries share a key, they are smaller than the model's.
    """
    widths: dict[int, Widths] = {}

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, None]:
        widths[id(module)] = (key.shape[1] * key.shape[3], value.shape[1] * value.shape[3])
        return value.new_zeros((query.shape[0], query.shape[2], query.shape[1], value.shape[3])), None

    _register(record)
    with undisturbed(model):
        for module in {
            id(m): m for layer in layers for m in layer.module.modules() if hasattr(m, "config")
        }.values():
            _SeparateConfiguration(module)
        outputs_of(model, inputs)
    modules: dict[str, tuple[nn.Module, Widths]] = {}
    for layer in layers:
        key = layer.first("k")
        around_key = [
            m
            for m in layer.module.modules()
            if id(m) in widths and any(inner is key for inner in m.modules())
        ]
        if len(around_key) == 1:
            modules[layer.name] = (around_key[0], widths[id(around_key[0])])
    return modules


def attach_prefixes(
    layers: list[Layer],
    config: PrefixTuning,
    generator: torch.Generator,
    model: nn.Module,
    inputs: Inputs,
) -> Iterator[Prefix]:
    """Put a prefix into the attention of layers; each is yielded once it is there.

    Raises:
        ConfigurationError: The model's attention does not accept longer keys.
    """
    candidates = [layer for layer in layers if not hasattr(_owner(layer), OWN_SCORES)]
    through_table = _through_table(candidates, model, inputs) if candidates else {}
    custom = [layer for layer in layers if layer.name not in through_table and not valueless(model)]
    before = [reach_of_one_token(layer, model, inputs) for layer in custom]
    for layer in layers:
        yield _attach(layer, config, generator, model, through_table.get(layer.name), inputs)
    after = [reach_of_one_token(layer, model, inputs) for layer in custom]
    proved = before == after and all(before)
    if not proved or not all(takes_averages(layer, model, inputs) for layer in custom):
        raise _refused(model)


def _refused(model: nn.Module) -> ConfigurationError:
    return ConfigurationError(
        f"a prefix does not work with {type(model).__name__}: its attention is not in transformers' table of "
        "functions and does not accept longer keys; use lora, or an adapter at position='attention'"
    )


def _owner(layer: Layer) -> nn.Module:
    """Return the module that holds the key projection."""
    name = next(iter(layer.play("k"))).removeprefix(f"{layer.name}.").rpartition(".")[0]
    return layer.module.get_submodule(name)


def _attach(
    layer: Layer,
    config: PrefixTuning,
    generator: torch.Generator,
    model: nn.Module,
    through_table: tuple[nn.Module, Widths] | None,
    inputs: Inputs,
) -> Prefix:
    key, value, attention = layer.first("k"), layer.first("v"), _owner(layer)
    cached = None if through_table else cached_widths(attention, model, inputs)
    if through_table is not None:
        attention, widths = through_table
    elif cached is not None:
        widths = cached
    elif key is not value and key is not layer.first("q"):
        widths = width_out(key), width_out(value)
    else:
        raise _refused(model)
    model_config = getattr(model if through_table is None else attention, "config", None)
    implementation_of(model_config)
    prefix = Prefix(widths, config, generator, place_of_new(config.dtype, layer.module), model_config)
    prefix.settle(attention, "prefix")
    if through_table is not None:
        _register_prefixed()
        prefix.act_through(_SeparateConfiguration, attention)
    elif cached is not None:
        prefix.act_through(Cached, prefix, attention)
    else:
        # By name: LoRA may have replaced a projection.
        key, value = (model.get_submodule(next(iter(layer.roles[role]))) for role in ("k", "v"))
        prefix.act_through(Lengthened, prefix, attention, key, value)
    return prefix
