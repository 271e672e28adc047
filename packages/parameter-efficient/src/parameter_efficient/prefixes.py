"""Prefix tuning: learned keys and values before those of the tokens.

Attention modules of transformers ask a table for the function that computes attention. A prefixed one asks
for ours, which prepends and hands on to the function that it would have got. Others compute attention by
themselves (`custom_attention`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import Resident, place_of_new
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
from parameter_efficient.forward import outputs_of, undisturbed, valueless

__all__ = ["Prefix", "attach_prefixes", "implementation_of"]

NAME = "prefix_tuning"


class Prefix(Resident):
    """Keys and values of shapes (n, width of all key heads) and (n, width of all value heads).

    Args:
        widths: Elements of a token's key, and of its value.
        config: Everything else.
        generator: Draws them.
        place: Device and dtype.
        model_config: The configuration that names the attention function of the tokens.
    """

    reason = "its keys and values belong to no token"

    def __init__(
        self,
        widths: tuple[int, int],
        config: PrefixTuning,
        generator: torch.Generator,
        place: dict[str, Any],
        model_config: Any,
    ) -> None:
        super().__init__()
        keys, values = (torch.randn(config.length, n, generator=generator) * config.init_std for n in widths)
        self.model_config = model_config
        self.keys = nn.Parameter(keys.to(**place))
        self.values = nn.Parameter(values.to(**place))

    @property
    def length(self) -> int:
        """Return n."""
        return self.keys.shape[0]

    def prepend(self, learned: Tensor, states: Tensor) -> Tensor:
        """Put learned rows before states of shape (batch, heads, tokens, width of a head)."""
        batch, heads, _, width = states.shape
        rows = learned.view(-1, heads, width).transpose(0, 1).to(states.dtype)
        return torch.cat([rows.expand(batch, -1, -1, -1), states], dim=2)

    def open_mask(self, mask: Tensor) -> Tensor:
        """Let every query see the prefix: the mask's last dimension grows by n."""
        return F.pad(mask, (self.length, 0), value=1 if mask.ndim == 2 or mask.dtype == torch.bool else 0)


class _OwnConfiguration:
    """An attention module's configuration, exchanged for a copy that names our function."""

    def __init__(self, attention: Any) -> None:
        self.attention, self.shared = attention, attention.config
        attention.config = copy.copy(attention.config)
        attention.config._attn_implementation = NAME

    def remove(self) -> None:
        self.attention.config = self.shared


def implementation_of(model_config: Any) -> str:
    """Return the name of a model's attention function now: `set_attn_implementation` changes it."""
    name = getattr(model_config, "_attn_implementation", None) or "eager"
    if name not in ("eager", "sdpa") and "flash" not in name:
        raise ConfigurationError(
            f"a prefix does not work with attention {name!r}: load the model with attn_implementation='sdpa'"
        )
    return name


def _prefixed_attention(
    table: Mapping[str, Any],
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Prepend, and hand on to the function of the model's own choice."""
    prefix: Prefix = module.prefix
    modeling = sys.modules[type(module).__module__]
    implementation = implementation_of(prefix.model_config)
    # Eager attention is a function of each model's own module; the table has the others.
    eager = implementation == "eager"
    function: Any = modeling.eager_attention_forward if eager else table[implementation]
    tokens, queries = key.shape[2], query.shape[2]
    if attention_mask is not None:
        attention_mask = prefix.open_mask(attention_mask)
    elif implementation == "sdpa" and getattr(module, "is_causal", False) and queries > 1:
        causal = torch.ones(1, 1, queries, tokens, dtype=torch.bool, device=key.device).tril(tokens - queries)
        attention_mask = prefix.open_mask(causal)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (prefix.length, 0))
    key, value = prefix.prepend(prefix.keys, key), prefix.prepend(prefix.values, value)
    return function(module, query, key, value, attention_mask, **kwargs)


def _asked(
    layers: list[Layer], model: Any, inputs: Mapping[str, Any]
) -> dict[str, tuple[Any, tuple[int, int]]]:
    """Return, by layer, the module that asks the table for its attention to its own tokens, and widths.

    The widths are those of a token's keys and values, seen in a forward pass: where several queries share a
    key, they are narrower than the model.
    """
    from transformers import AttentionInterface

    seen: dict[int, tuple[int, int]] = {}

    def note(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen[id(module)] = (key.shape[1] * key.shape[3], value.shape[1] * value.shape[3])
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(NAME, note)
    with undisturbed(model):
        for module in {
            id(m): m for layer in layers for m in layer.module.modules() if hasattr(m, "config")
        }.values():
            _OwnConfiguration(module)
        outputs_of(model, inputs)
    asking = {}
    for layer in layers:
        key = layer.one("k")
        readers = [
            m for m in layer.module.modules() if id(m) in seen and any(inner is key for inner in m.modules())
        ]
        if len(readers) == 1:
            asking[layer.name] = (readers[0], seen[id(readers[0])])
    return asking


def attach_prefixes(
    layers: list[Layer],
    config: PrefixTuning,
    generator: torch.Generator,
    model: Any,
    inputs: Mapping[str, Any],
) -> Iterator[Prefix]:
    """Put a prefix into the attention of layers; yields each once it is there.

    Raises:
        ConfigurationError: The model's attention takes no longer keys.
    """
    through_table = [layer for layer in layers if not hasattr(_owner(layer), OWN_SCORES)]
    asked = _asked(through_table, model, inputs) if through_table else {}
    alone = [layer for layer in layers if layer.name not in asked and not valueless(model)]
    before = [reach_of_one_token(layer, model, inputs) for layer in alone]
    for layer in layers:
        yield _attach(layer, config, generator, model, asked.get(layer.name), inputs)
    after = [reach_of_one_token(layer, model, inputs) for layer in alone]
    proved = before == after and all(before)
    if not proved or not all(takes_averages(layer, model, inputs) for layer in alone):
        raise _refused(model)


def _refused(model: nn.Module) -> ConfigurationError:
    return ConfigurationError(
        f"a prefix does not work with {type(model).__name__}, whose attention asks no table for its function "
        "and takes no longer keys: use lora, or an adapter at position='attention'"
    )


def _owner(layer: Layer) -> Any:
    """Return the module that holds the key projection."""
    name = next(iter(layer.play("k"))).removeprefix(f"{layer.name}.").rpartition(".")[0]
    return layer.module.get_submodule(name)


def _attach(
    layer: Layer,
    config: PrefixTuning,
    generator: torch.Generator,
    model: Any,
    asked: tuple[Any, tuple[int, int]] | None,
    inputs: Mapping[str, Any],
) -> Prefix:
    from transformers import AttentionInterface

    key, value, attention = layer.one("k"), layer.one("v"), _owner(layer)
    cached = None if asked else cached_widths(attention, model, inputs)
    if asked is not None:
        attention, widths = asked
    elif cached is not None:
        widths = cached
    elif key is not value and key is not layer.one("q"):
        widths = width_out(key), width_out(value)
    else:
        raise _refused(model)
    model_config = model.config if asked is None else attention.config
    implementation_of(model_config)
    prefix = Prefix(widths, config, generator, place_of_new(config.dtype, layer.module), model_config)
    prefix.settle(attention, "prefix")
    if asked is not None:
        # The table is given here: compilers of torch 2.9 and 2.10 follow no import of transformers.
        AttentionInterface.register(NAME, partial(_prefixed_attention, AttentionInterface()))
        prefix.act_through(_OwnConfiguration, attention)
    elif cached is not None:
        prefix.act_through(Cached, prefix, attention)
    else:
        # By name: LoRA may have put a longer way in the place of a projection.
        key, value = (model.get_submodule(next(iter(layer.roles[role]))) for role in ("k", "v"))
        prefix.act_through(Lengthened, prefix, attention, key, value)
    return prefix
