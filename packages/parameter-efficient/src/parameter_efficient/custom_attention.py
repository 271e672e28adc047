"""Prefixes in models that compute attention themselves, not through transformers' table of functions.

Where it takes a cache of keys and values, as most do for generation, it gets one that puts the prefix before
what it returns. Elsewhere (DeBERTa) hooks lengthen what the key and the value projection give. Masks and
scores of positions, of four dimensions, are lengthened with them. That the result is attention to prefix and
tokens is proved: an average over all of them is taken, and a token reaches the tokens that it reached before.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parameter_efficient.architecture import Layer
from parameter_efficient.forward import DOES_NOT_RUN, outputs_of, undisturbed

__all__ = ["OWN_SCORES", "Cached", "Lengthened", "cached_widths", "reach_of_one_token", "takes_averages"]

OWN_SCORES = "disentangled_attention_bias"
"""DeBERTa's scores of positions, which the prefix has none of."""
CACHES = ("past_key_values", "layer_past", "past_key_value", "cache")
"""What the argument is called that is asked to `update` keys and values."""


def _bound(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of a forward pass by name."""
    bound = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
    return bound | bound.pop("kwargs", {})


def _opened(prefix: Any, given: Mapping[str, Any], as_flags: bool = False) -> dict[str, Any]:
    """Lengthen masks and scores of positions, of shape (…, …, queries, keys)."""

    def longer(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 4 or not re.search("mask|bias", name):
            return value
        return prefix.open_mask(value.bool() if as_flags else value)

    return {name: longer(name, value) for name, value in given.items()}


class Lengthened:
    """The hooks that lengthen keys, values, mask and position scores of attention that asks no table."""

    def __init__(self, prefix: Any, attention: Any, key: nn.Module, value: nn.Module) -> None:
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
        """Take them away."""
        for handle in self.handles:
            handle.remove()
        if self.own_scores is not None:
            delattr(self.attention, OWN_SCORES)

    def lengthen_masks(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Lengthen masks (of ones and zeros for DeBERTa, else added to scores) and scores of positions."""
        given = _bound(module, args, kwargs)
        return (), _opened(self.prefix, given, as_flags=self.own_scores is not None)

    def lengthen_keys(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the key projection."""
        return output if self.scoring_positions else self._prepend(self.prefix.keys, output)

    def lengthen_values(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the value projection."""
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


class _Prepending:
    """A cache that puts the prefix before the keys and values that it returns."""

    def __init__(self, prefix: Any, cache: Any) -> None:
        self._prefix, self._cache = prefix, cache

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return prefix, what was there before, and what is new."""
        cache = getattr(self._cache, "self_attention_cache", self._cache)
        if cache is not None:
            keys, values = cache.update(keys, values, *args, **kwargs)
        prefix = self._prefix
        return prefix.prepend(prefix.keys, keys), prefix.prepend(prefix.values, values)


class _Noting:
    """A cache that keeps nothing but the widths of all heads together."""

    def __init__(self) -> None:
        self.widths: tuple[int, int] | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Note the widths."""
        self.widths = keys.shape[1] * keys.shape[3], values.shape[1] * values.shape[3]
        return keys, values


def _argument(attention: nn.Module) -> str | None:
    names = inspect.signature(attention.forward).parameters
    return next((name for name in CACHES if name in names), None)


def cached_widths(
    attention: nn.Module, model: nn.Module, inputs: Mapping[str, Any]
) -> tuple[int, int] | None:
    """Return the widths of keys and values that attention gives to a cache; None where it asks none."""
    name, noting = _argument(attention), _Noting()
    if name is None:
        return None

    def give(module: Any, args: Any, kwargs: Any) -> Any:
        return (), _bound(module, args, kwargs) | {name: noting}

    with undisturbed(model):
        attention.register_forward_pre_hook(give, with_kwargs=True)
        try:
            outputs_of(model, inputs)
        except DOES_NOT_RUN:
            return None
    return noting.widths


class Cached:
    """The hook that gives attention a cache with a prefix, and opens its masks."""

    def __init__(self, prefix: Any, attention: nn.Module) -> None:
        self._prefix, self._name = prefix, _argument(attention)
        self._handle = attention.register_forward_pre_hook(self.give, with_kwargs=True)

    def remove(self) -> None:
        """Take it away."""
        self._handle.remove()

    def give(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the attention module."""
        given = _opened(self._prefix, _bound(module, args, kwargs))
        assert self._name is not None
        return (), given | {self._name: _Prepending(self._prefix, given.get(self._name))}


def _seen(layer: Layer, model: nn.Module, inputs: Mapping[str, Any], change: Any) -> list[Tensor]:
    """Return o's input in a forward pass in which v's output is changed."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach().clone())

    with undisturbed(model):
        value, out = (model.get_submodule(next(iter(layer.roles[role]))) for role in ("v", "o"))
        value.register_forward_hook(lambda module, args, output: change(output))
        out.register_forward_pre_hook(note)
        try:
            outputs_of(model, inputs)
        except DOES_NOT_RUN:
            return []
    return seen


def takes_averages(layer: Layer, model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return whether attention gives ones when all values, the prefix's too, are 1."""
    prefix: Any = next(m for n, m in layer.module.named_modules() if n.rpartition(".")[2] == "prefix")
    kept = prefix.values.detach().clone()
    with torch.no_grad():
        prefix.values.fill_(1.0)
        seen = _seen(layer, model, inputs, torch.ones_like)
        prefix.values.copy_(kept)
    return bool(seen) and all(
        torch.allclose(weights, torch.ones_like(weights), atol=1e-2) for weights in seen
    )


def reach_of_one_token(layer: Layer, model: nn.Module, inputs: Mapping[str, Any]) -> list[list[bool]]:
    """Return which tokens of o's input change when v's output for the last token but one does."""

    def moved(output: Tensor) -> Tensor:
        output = output.clone()
        output[:, -2] += 1
        return output

    changed, plain = _seen(layer, model, inputs, moved), _seen(layer, model, inputs, torch.clone)
    pairs = list(zip(changed, plain, strict=False))
    if len(changed) != len(plain) or any(a.shape != b.shape or a.ndim != 3 for a, b in pairs):
        return []
    return [(a - b).abs().amax(dim=(0, 2)).gt(1e-6).tolist() for a, b in pairs]
