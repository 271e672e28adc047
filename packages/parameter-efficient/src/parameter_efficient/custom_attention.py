"""Prefixes in models that compute attention themselves, not through transformers' table of functions.

Attention that accepts a cache of keys and values, as most does for generation, gets one that returns the
prefix before the tokens. In other models (DeBERTa) hooks lengthen the outputs of the key and the value
projection. Masks and scores of positions, of four dimensions, are lengthened too. A test proves that the
result is attention to prefix and tokens: it averages over all of them, and each token reaches the same tokens
as before.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parameter_efficient.architecture import Layer
from parameter_efficient.forward import DOES_NOT_RUN, Inputs, outputs_of, undisturbed
from parameter_efficient.prefix import Prefix
from parameter_efficient.typed import named_modules

__all__ = ["OWN_SCORES", "Cached", "Lengthened", "cached_widths", "reach_of_one_token", "takes_averages"]

OWN_SCORES = "disentangled_attention_bias"
"""The method with DeBERTa's scores of positions; the prefix has no positions."""
CACHES = ("past_key_values", "layer_past", "past_key_value", "cache")
"""Names of the argument for a cache, whose `update` receives keys and values."""

Arguments = tuple[tuple[()], dict[str, object]]
"""Arguments of a forward pass, all by name."""


def _bound(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
    """Return arguments of a forward pass by name."""
    bound = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    return bound | bound.pop("kwargs", {})


def _opened(prefix: Prefix, arguments: Mapping[str, object], as_flags: bool = False) -> dict[str, object]:
    """Lengthen masks and scores of positions, of shape (…, …, queries, keys)."""

    def longer(name: str, value: object) -> object:
        if not isinstance(value, Tensor) or value.ndim != 4 or not re.search("mask|bias", name):
            return value
        return prefix.open_mask(value.bool() if as_flags else value)

    return {name: longer(name, value) for name, value in arguments.items()}


class Lengthened:
    """The hooks that lengthen keys, values, mask and position scores of attention that uses no table."""

    def __init__(self, prefix: Prefix, attention: nn.Module, key: nn.Module, value: nn.Module) -> None:
        self.prefix, self.attention, self.scoring_positions = prefix, attention, False
        self.handles = [
            attention.register_forward_pre_hook(self.lengthen_masks, with_kwargs=True),
            key.register_forward_hook(self.lengthen_keys),
            value.register_forward_hook(self.lengthen_values),
        ]
        self.position_scores: Callable[..., object] | None = getattr(attention, OWN_SCORES, None)
        if self.position_scores is not None:
            setattr(attention, OWN_SCORES, self.pad_scores)

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()
        if self.position_scores is not None:
            delattr(self.attention, OWN_SCORES)

    def lengthen_masks(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Arguments:
        """Lengthen masks (of ones and zeros for DeBERTa, else added to scores) and scores of positions."""
        arguments = _bound(module, args, kwargs)
        return (), _opened(self.prefix, arguments, as_flags=self.position_scores is not None)

    def lengthen_keys(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        """Forward hook of the key projection."""
        return output if self.scoring_positions else self._prepend(self.prefix.keys, output)

    def lengthen_values(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        """Forward hook of the value projection."""
        return self._prepend(self.prefix.values, output)

    def _prepend(self, learned: Tensor, states: Tensor) -> Tensor:
        rows = learned.to(states.dtype).expand(states.shape[0], -1, -1)
        return torch.cat([rows, states], dim=1)

    def pad_scores(self, query: Tensor, key: Tensor, *args: object) -> object:
        """Score the positions of the tokens; the prefix has none."""
        self.scoring_positions = True
        assert self.position_scores is not None
        scores = self.position_scores(query, key[:, self.prefix.length :], *args)
        self.scoring_positions = False
        return F.pad(scores, (self.prefix.length, 0)) if isinstance(scores, Tensor) else scores


class Cache(Protocol):
    """Keys and values of earlier tokens."""

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Add new ones, and return all."""
        ...


class _Prepending:
    """A cache that puts the prefix before the keys and values that it returns."""

    def __init__(self, prefix: Prefix, cache: object) -> None:
        self._prefix = prefix
        self._cache = cast("Cache | None", getattr(cache, "self_attention_cache", cache))

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Return the prefix, the earlier keys and values, and the new ones."""
        if self._cache is not None:
            keys, values = self._cache.update(keys, values, *args, **kwargs)
        prefix = self._prefix
        return prefix.prepend(prefix.keys, keys), prefix.prepend(prefix.values, values)


class _WidthRecorder:
    """A cache that keeps nothing but the widths of all heads together."""

    def __init__(self) -> None:
        self.widths: tuple[int, int] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Record the widths."""
        self.widths = keys.shape[1] * keys.shape[3], values.shape[1] * values.shape[3]
        return keys, values


def _argument(attention: nn.Module) -> str | None:
    names = inspect.signature(attention.forward).parameters
    return next((name for name in CACHES if name in names), None)


def cached_widths(attention: nn.Module, model: nn.Module, inputs: Inputs) -> tuple[int, int] | None:
    """Return the widths of keys and values that attention passes to a cache; None if it takes no cache."""
    name, recorder = _argument(attention), _WidthRecorder()
    if name is None:
        return None

    def pass_recorder(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments:
        return (), _bound(module, args, kwargs) | {name: recorder}

    with undisturbed(model):
        attention.register_forward_pre_hook(pass_recorder, with_kwargs=True)
        try:
            outputs_of(model, inputs)
        except DOES_NOT_RUN:
            return None
    return recorder.widths


class Cached:
    """The hook that passes attention a cache with a prefix, and opens its masks."""

    def __init__(self, prefix: Prefix, attention: nn.Module) -> None:
        self._prefix, self._name = prefix, _argument(attention)
        self._handle = attention.register_forward_pre_hook(self.pass_cache, with_kwargs=True)

    def remove(self) -> None:
        """Remove the hook."""
        self._handle.remove()

    def pass_cache(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments:
        """Forward pre-hook of the attention module."""
        arguments = _opened(self._prefix, _bound(module, args, kwargs))
        assert self._name is not None
        return (), arguments | {self._name: _Prepending(self._prefix, arguments.get(self._name))}


def _inputs_of_o(
    layer: Layer, model: nn.Module, inputs: Inputs, change: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Return the inputs of o in a forward pass in which v's output is changed."""
    recorded: list[Tensor] = []

    def change_output(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return change(output)

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        recorded.append(args[0].detach().clone())

    with undisturbed(model):
        value, out = (model.get_submodule(next(iter(layer.roles[role]))) for role in ("v", "o"))
        value.register_forward_hook(change_output)
        out.register_forward_pre_hook(record)
        try:
            outputs_of(model, inputs)
        except DOES_NOT_RUN:
            return []
    return recorded


def takes_averages(layer: Layer, model: nn.Module, inputs: Inputs) -> bool:
    """Return whether attention outputs ones if all values are 1, the prefix's included."""
    prefix = next(module for _, module in named_modules(layer.module) if isinstance(module, Prefix))
    original = prefix.values.detach().clone()
    with torch.no_grad():
        prefix.values.fill_(1.0)
        averages = _inputs_of_o(layer, model, inputs, torch.ones_like)
        prefix.values.copy_(original)
    return bool(averages) and all(
        torch.allclose(average, torch.ones_like(average), atol=1e-2) for average in averages
    )


def reach_of_one_token(layer: Layer, model: nn.Module, inputs: Inputs) -> list[list[bool]]:
    """Return which tokens of o's input change if v's output for the last token but one does."""

    def moved(output: Tensor) -> Tensor:
        output = output.clone()
        output[:, -2] += 1
        return output

    changed = _inputs_of_o(layer, model, inputs, moved)
    plain = _inputs_of_o(layer, model, inputs, torch.clone)
    pairs = list(zip(changed, plain, strict=False))
    if len(changed) != len(plain) or any(a.shape != b.shape or a.ndim != 3 for a, b in pairs):
        return []
    reached = [(a - b).abs().amax(dim=(0, 2)).gt(1e-6) for a, b in pairs]
    return [[bool(token) for token in tokens.unbind()] for tokens in reached]
