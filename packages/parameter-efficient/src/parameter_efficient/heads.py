"""Both ends of the encoder: what enters its first layer, and what the head reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Architecture
from parameter_efficient.attachment import Attachment, Outside

__all__ = ["FrozenInput", "MeanPooling", "Truncation", "head_parameters"]

FIRST_TOKEN = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction")
"""What the names of models end with whose heads read the first token, if they read one alone."""


def head_parameters(model: Any) -> list[tuple[nn.Module, str]]:
    """Return the head's parameters: those outside of the base model, and the base model's pooler.

    Returns:
        Module and attribute of each; nothing for a bare encoder.
    """
    base = model.base_model if hasattr(model, "base_model") else model
    if base is model:
        return []
    pooler = getattr(base, "pooler", None)
    outside = {id(parameter) for parameter in base.parameters()}
    if isinstance(pooler, nn.Module):
        outside -= {id(parameter) for parameter in pooler.parameters()}
    return [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in outside
    ]


class FrozenInput(Attachment):
    """No gradient leaves the first layer towards the embeddings, which are frozen.

    Activation checkpointing makes the embeddings' output require a gradient, and the backward pass would run
    through every frozen layer.

    Args:
        architecture: Its first layer is watched; not where layers are shared: it is a later one as well.
    """

    def __init__(self, architecture: Architecture) -> None:
        first = architecture.layers[0].module
        self._handles = [] if architecture.shared else [first.register_forward_pre_hook(self._cut)]

    def _cut(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].detach(), *args[1:])

    def detach(self) -> None:
        """Let gradients through again."""
        for handle in self._handles:
            handle.remove()

    def merge(self) -> None:
        """Nothing is to be done: the output does not depend on it."""


class Truncation(Attachment):
    """Only the first layers of a model are used.

    Args:
        model: The model.
        architecture: Its layers.
        depth: How many of them stay.
    """

    def __init__(self, model: Any, architecture: Architecture, depth: int) -> None:
        if architecture.shared:
            raise ConfigurationError(
                f"encoder_layers={depth}: {architecture.kind} uses the same weights in every layer and "
                "cannot be cut: leave it out"
            )
        if depth > len(architecture.layers):
            raise ConfigurationError(
                f"encoder_layers={depth}: {architecture.kind} has {len(architecture.layers)} layers: give 1 "
                f"to {len(architecture.layers)}, or leave it out"
            )
        self._layers = getattr(model.get_submodule(architecture.container), architecture.attribute)
        self._rest = Outside(self._layers[depth:], self._layers[0])
        del self._layers[depth:]

    def detach(self) -> None:
        """Use all layers again."""
        self._rest.catch_up()
        self._layers.extend(self._rest.part)

    def merge(self) -> None:
        """Nothing is to be done: the layers are gone."""


def _reads_the_first_token(model: Any) -> bool:
    """Return whether a model's head reads the first token: one that is called score reads the last."""
    classifies = any(kind.__name__.endswith(FIRST_TOKEN) for kind in type(model).__mro__)
    return classifies and not model.config.is_encoder_decoder and not hasattr(model, "score")


class MeanPooling(Attachment):
    """The head reads the mean of all tokens that are no padding, where it expects the first token's state.

    Args:
        model: A classifier whose head reads the first token.
        architecture: Its layers.
    """

    def __init__(self, model: Any, architecture: Architecture) -> None:
        base = model.base_model
        if not _reads_the_first_token(model):
            raise ConfigurationError(
                f"pooling='mean' needs a classifier whose head reads the first token, which "
                f"{architecture.kind} is not: use pooling='cls'"
            )
        self._mask: Tensor | None = None
        self._handles = [
            base.register_forward_pre_hook(self._keep_mask, with_kwargs=True),
            model.get_submodule(architecture.container).register_forward_hook(self._exchange),
        ]

    def _keep_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if self._mask is not None and self._mask.ndim != 2:
            raise ConfigurationError(
                f"pooling='mean' needs an attention mask of shape (batch, tokens), not "
                f"{tuple(self._mask.shape)}"
            )

    def _exchange(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden = output["last_hidden_state"]
        mask = torch.ones(hidden.shape[:2], device=hidden.device) if self._mask is None else self._mask
        self._mask = None
        weights = mask.to(hidden.dtype)[..., None]
        mean = (hidden * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        pooled = torch.cat([mean, hidden[:, 1:]], dim=1)
        output["last_hidden_state"] = pooled
        if output.get("hidden_states") is not None:
            output["hidden_states"] = (*output["hidden_states"][:-1], pooled)
        return output

    def detach(self) -> None:
        """Let the head read the first token again."""
        for handle in self._handles:
            handle.remove()

    def merge(self) -> None:
        """Refuse: no weights hold it."""
        raise ConfigurationError(
            "pooling='mean' cannot be merged: no weights of the model hold it; keep it attached"
        )
