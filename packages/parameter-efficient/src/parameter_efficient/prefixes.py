"""Prefix tuning: learned keys and values before those of the tokens.

Attention modules of transformers ask a table for the function that computes attention. A prefixed one asks
for ours, which prepends and hands on to the function that it would have got. Others compute attention by
themselves: there, hooks lengthen keys, values, mask and scores of positions, and it is proved that averages
over all of them are taken.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Layer
from parameter_efficient.attachment import Resident, place_of_new
from parameter_efficient.blocks import width_out
from parameter_efficient.configs import PrefixTuning
from parameter_efficient.forward import DOES_NOT_RUN, outputs_of, undisturbed, valueless

__all__ = ["Prefix", "attach_prefixes", "implementation_of"]

NAME = "prefix_tuning"
OWN_SCORES = "disentangled_attention_bias"
"""DeBERTa's scores of positions, which the prefix has none of."""


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
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """Prepend, and hand on to the function of the model's own choice."""
    from transformers import AttentionInterface

    prefix: Prefix = module.prefix
    own = sys.modules[type(module).__module__]
    eager: Any = getattr(own, "eager_attention_forward", None)
    implementation = implementation_of(prefix.model_config)
    function = AttentionInterface().get_interface(implementation, eager)
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


class _Lengthened:
    """The hooks that lengthen keys, values, mask and position scores of attention that asks no table."""

    def __init__(self, prefix: Prefix, attention: Any, key: nn.Module, value: nn.Module) -> None:
        self.prefix, self.attention, self.scoring_positions = prefix, attention, False
        self.handles = [
            attention.register_forward_pre_hook(self.lengthen_masks, with_kwargs=True),
            key.register_forward_hook(self.lengthen_keys),
            value.register_forward_hook(self.lengthen_values),
        ]
        self.own_scores = getattr(attention, OWN_SCORES, None)
        if self.own_scores is not None:
            setattr(attention, OWN_SCORES, self.pad_scores)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        if self.own_scores is not None:
            delattr(self.attention, OWN_SCORES)

    def lengthen_masks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lengthen masks (of ones and zeros for DeBERTa, else added to scores) and scores of positions."""

        def longer(one: Tensor) -> Tensor:
            if one.ndim != 4:
                return one
            return self.prefix.open_mask(one.bool() if self.own_scores is not None else one)

        return tree_map_only(Tensor, longer, (args, kwargs))

    def lengthen_keys(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output if self.scoring_positions else self._prepend(self.prefix.keys, output)

    def lengthen_values(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return self._prepend(self.prefix.values, output)

    def _prepend(self, learned: Tensor, states: Tensor) -> Tensor:
        rows = learned.to(states.dtype).expand(states.shape[0], -1, -1)
        return torch.cat([rows, states], dim=1)

    def pad_scores(self, query: Tensor, key: Tensor, *args: Any) -> Any:
        """Score the positions of the tokens; the prefix has none."""
        self.scoring_positions = True
        assert self.own_scores is not None
        scores = self.own_scores(query, key[:, self.prefix.length :], *args)
        self.scoring_positions = False
        return F.pad(scores, (self.prefix.length, 0)) if isinstance(scores, Tensor) else scores


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
    found = {}
    for layer in layers:
        key = layer.one("k")
        own = [
            m for m in layer.module.modules() if id(m) in seen and any(inner is key for inner in m.modules())
        ]
        if len(own) == 1:
            found[layer.name] = (own[0], seen[id(own[0])])
    return found


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
    own = [layer for layer in layers if not hasattr(_owner(layer), OWN_SCORES)]
    asked = _asked(own, model, inputs) if own else {}
    for layer in layers:
        yield _attach(layer, config, generator, model, asked.get(layer.name))
    alone = [layer for layer in layers if layer.name not in asked]
    if alone and not valueless(model) and not all(_averages(layer, model, inputs) for layer in alone):
        raise _refused(model)


def _refused(model: nn.Module) -> ConfigurationError:
    return ConfigurationError(
        f"a prefix does not work with {type(model).__name__}, whose attention asks no table for its function "
        "and takes no longer keys: use lora, or an adapter at position='attention'"
    )


def _averages(layer: Layer, model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return whether, where all values are 1, those of the prefix too, attention gives ones."""
    seen: list[Tensor] = []

    def ones(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.ones_like(output)

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    with undisturbed(model):
        value, out = (model.get_submodule(next(iter(layer.roles[role]))) for role in ("v", "o"))
        value.register_forward_hook(ones)
        out.register_forward_pre_hook(note)
        try:
            outputs_of(model, inputs)
        except DOES_NOT_RUN:
            return False
    return bool(seen) and all(torch.allclose(one, torch.ones_like(one), atol=1e-2) for one in seen)


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
) -> Prefix:
    from transformers import AttentionInterface

    key, value, attention = layer.one("k"), layer.one("v"), _owner(layer)
    by_itself = asked is None
    if asked is not None:
        attention, widths = asked
    elif key is not value and key is not layer.one("q"):
        widths = width_out(key), width_out(value)
    else:
        raise _refused(model)
    model_config = model.config if by_itself else attention.config
    implementation_of(model_config)
    prefix = Prefix(widths, config, generator, place_of_new(config.dtype, layer.module), model_config)
    prefix.settle(attention, "prefix")
    if by_itself:
        # By name: LoRA may have put a longer way in the place of a projection.
        key, value = (model.get_submodule(next(iter(layer.roles[role]))) for role in ("k", "v"))
        prefix.act_through(_Lengthened, prefix, attention, key, value)
    else:
        AttentionInterface.register(NAME, _prefixed_attention)
        prefix.act_through(_OwnConfiguration, attention)
    return prefix
