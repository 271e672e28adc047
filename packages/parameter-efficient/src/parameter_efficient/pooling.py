"""How many layers of the body run, and which of its output tokens the head reads."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment, Outside
from parameter_efficient.blocks import Stack
from parameter_efficient.forward import DOES_NOT_RUN, Inputs, outputs_of, undisturbed, valueless

__all__ = ["MeanPooling", "Truncation"]


class Truncation(Attachment):
    """Only the first layers of a model are used.

    Args:
        model: The model.
        stack: Its layers.
        depth: How many layers to keep.
        shared: Whether some are used several times.
    """

    def __init__(self, model: nn.Module, stack: Stack, depth: int, shared: bool) -> None:
        kind = type(model).__name__
        layers: nn.ModuleList = getattr(model.get_submodule(stack.container), stack.attribute)
        if shared or len(layers) != len(stack.blocks):
            raise ConfigurationError(
                f"encoder_layers={depth}: {kind} uses the same weights in every layer and cannot be cut: "
                "leave encoder_layers out"
            )
        if depth > len(layers):
            raise ConfigurationError(
                f"encoder_layers={depth}: {kind} has {len(layers)} layers: give 1 to "
                f"{len(layers)}, or leave it out"
            )
        self._model, self._layers = model, layers
        self._changed: tuple[JsonObject, JsonObject] | None = None
        self._depth, self._before = depth, len(layers)
        self.reattach()

    def detach(self) -> None:
        """Use all layers again."""
        self._rest.catch_up()
        self._layers.extend(self._rest_of_layers)

    def reattach(self) -> None:
        """Cut off the last layers."""
        self._rest_of_layers = self._layers[self._depth :]
        self._rest = Outside(self._rest_of_layers, self._layers[0])
        del self._layers[self._depth :]

    def merge(self) -> None:
        """Write the depth into the model's configuration, so that a saved model loads with it.

        Raises:
            ConfigurationError: No entry of the configuration is the depth.
        """
        old, new = self._before, len(self._layers)
        shapes = {name: tuple(p.shape) for name, p in self._model.named_parameters()}
        for entries in _configurations(getattr(self._model, "config", None)):
            original = dict(entries)
            shorter = {key: value[:new] for key, value in original.items() if _has_length(value, old)}
            for name in [key for key, value in original.items() if type(value) is int and value == old]:
                entries.update(shorter | {name: new})
                if self._rebuilt() == shapes:
                    self._changed = entries, original
                    return
                entries.update(original)
        raise ConfigurationError(
            f"no entry of {type(self._model).__name__}'s configuration is its depth, so {new} of {old} "
            "layers cannot be merged: keep the adaptation attached"
        )

    def _rebuilt(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a new model of this configuration."""
        try:
            with torch.device("meta"):
                made = type(self._model)(self._model.config)
        except DOES_NOT_RUN:
            return {}
        return {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}

    def unmerge(self) -> None:
        """Write the former depth into the configuration."""
        if self._changed is not None:
            entries, original = self._changed
            entries.update(original)
            self._changed = None


def _configurations(config: object) -> list[JsonObject]:
    """Return the entries of a configuration, which may be changed, and those of the ones in it."""
    if not hasattr(config, "to_dict"):
        return []
    entries = vars(config)
    return [entries, *(inner for value in entries.values() for inner in _configurations(value))]


def _has_length(value: object, length: int) -> bool:
    return isinstance(value, list) and len(cast("list[object]", value)) == length


BodyOutput = dict[str, Any]
"""A body's output; transformers' classes of outputs are dictionaries."""


def _replaced(output: BodyOutput, states: Tensor) -> BodyOutput:
    """Replace the last states in a body's output; deberta reads them from the list of all states."""
    output["last_hidden_state"] = states
    if output.get("hidden_states") is not None:
        output["hidden_states"] = (*output["hidden_states"][:-1], states)
    return output


def _reads_the_first_token(model: nn.Module, container: nn.Module, inputs: Inputs) -> bool:
    """Return whether the head reads only the first token: other tokens' states change nothing."""
    config: Any = model.config
    has_decoder: bool = config.is_encoder_decoder
    if valueless(model) or has_decoder:
        return not has_decoder

    def logits(first: int, last: int | None) -> list[Tensor]:
        def exchange(module: nn.Module, args: object, output: BodyOutput) -> BodyOutput:
            states = output["last_hidden_state"]
            generator = torch.Generator().manual_seed(0)
            made = torch.randn(states.shape, generator=generator).to(states)
            states = states.clone()
            states[:, first:last] = made[:, first:last]
            return _replaced(output, states)

        with undisturbed(model):
            container.register_forward_hook(exchange)
            return outputs_of(model, inputs)

    try:
        plain, others, first_token = logits(0, 0), logits(1, None), logits(0, 1)
    except (TypeError, KeyError, IndexError):
        return False
    return all(map(torch.equal, plain, others)) and not all(map(torch.equal, plain, first_token))


class MeanPooling(Attachment):
    """The head reads the mean of all tokens but padding, in place of the first token's state.

    Args:
        model: A classifier whose head reads the first token.
        stack: Its layers.
        inputs: Inputs of a forward pass.
    """

    def __init__(self, model: nn.Module, stack: Stack, inputs: Inputs) -> None:
        container = model.get_submodule(stack.container)
        if not _reads_the_first_token(model, container, inputs):
            raise ConfigurationError(
                "pooling='mean' needs a classifier whose head reads the first token, and "
                f"{type(model).__name__} is not one: use pooling='cls'"
            )
        self._mask: Tensor | None = None
        self._base: nn.Module = getattr(model, "base_model", model)
        self._container = container
        self.reattach()

    def _keep_mask(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._mask = cast("Tensor | None", mask)
        if self._mask is not None and self._mask.ndim != 2:
            raise ConfigurationError(
                f"pooling='mean' needs an attention mask of shape (batch, tokens), not "
                f"{tuple(self._mask.shape)}"
            )

    def _exchange(self, module: nn.Module, args: object, output: BodyOutput) -> BodyOutput:
        hidden = output["last_hidden_state"]
        mask = torch.ones(hidden.shape[:2], device=hidden.device) if self._mask is None else self._mask
        self._mask = None
        weights = mask.to(hidden.dtype)[..., None]
        mean = (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        pooled = torch.cat([mean, hidden[:, 1:]], dim=1)
        return _replaced(output, pooled)

    def detach(self) -> None:
        """Let the head read the first token again."""
        for handle in self._handles:
            handle.remove()

    def reattach(self) -> None:
        """Let the head read the mean."""
        self._handles = [
            self._base.register_forward_pre_hook(self._keep_mask, with_kwargs=True),
            self._container.register_forward_hook(self._exchange),
        ]

    def merge(self) -> None:
        """Refuse: no weights can express it."""
        raise ConfigurationError(
            "pooling='mean' cannot be merged: no weights of the model can express it; keep it attached"
        )
