"""How many layers of the body run, and which of its output tokens the head reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment, Outside
from parameter_efficient.blocks import Stack
from parameter_efficient.forward import DOES_NOT_RUN, outputs_of, undisturbed, valueless

__all__ = ["MeanPooling", "Truncation"]


class Truncation(Attachment):
    """Only the first layers of a model are used.

    Args:
        model: The model.
        stack: Its layers.
        depth: How many of them stay.
        shared: Whether some are used several times.
    """

    def __init__(self, model: Any, stack: Stack, depth: int, shared: bool) -> None:
        kind, layers = type(model).__name__, getattr(model.get_submodule(stack.container), stack.attribute)
        if shared or len(layers) != len(stack.blocks):
            raise ConfigurationError(
                f"encoder_layers={depth}: {kind} uses the same weights in every layer and cannot "
                "be cut: leave it out"
            )
        if depth > len(layers):
            raise ConfigurationError(
                f"encoder_layers={depth}: {kind} has {len(layers)} layers: give 1 to "
                f"{len(layers)}, or leave it out"
            )
        self._model, self._layers, self._config = model, layers, None
        self._depth, self._before = depth, len(layers)
        self.reattach()

    def detach(self) -> None:
        """Use all layers again."""
        self._rest.catch_up()
        self._layers.extend(self._rest.part)

    def reattach(self) -> None:
        """Cut the last layers off."""
        self._rest = Outside(self._layers[self._depth :], self._layers[0])
        del self._layers[self._depth :]

    def merge(self) -> None:
        """Write the depth into the model's configuration, so that what is saved loads as it is.

        Raises:
            ConfigurationError: No entry of the configuration is the depth.
        """
        config, old, new = self._model.config, self._before, len(self._layers)
        kept = dict(vars(config))
        names = getattr(config, "attribute_map", {})
        wanted = {name: tuple(p.shape) for name, p in self._model.named_parameters()}
        for name in (names.get("num_hidden_layers", "num_hidden_layers"), "encoder_layers"):
            if vars(config).get(name) != old:
                continue
            vars(config).update(
                {k: v[:new] for k, v in kept.items() if isinstance(v, list) and len(v) == old}
            )
            setattr(config, name, new)
            if self._rebuilt() == wanted:
                self._config = kept
                return
            vars(config).update(kept)
        raise ConfigurationError(
            f"{type(self._model).__name__} keeps its depth in no entry of its configuration that "
            "is known, so that "
            f"{new} of {old} layers cannot be merged: keep the adaptation attached"
        )

    def _rebuilt(self) -> dict[str, tuple[int, ...]]:
        try:
            with torch.device("meta"):
                made = type(self._model)(self._model.config)
        except DOES_NOT_RUN:
            return {}
        return {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}

    def unmerge(self) -> None:
        """Write the former depth into the configuration."""
        if self._config is not None:
            vars(self._model.config).clear()
            vars(self._model.config).update(self._config)
            self._config = None


def _replaced(output: Any, states: Tensor) -> Any:
    """Replace the last states in a body's output; deberta reads them from the list of all states."""
    output["last_hidden_state"] = states
    if output.get("hidden_states") is not None:
        output["hidden_states"] = (*output["hidden_states"][:-1], states)
    return output


def _reads_the_first_token(model: Any, container: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return whether the head reads the first token alone: the others' states change nothing."""
    if valueless(model) or model.config.is_encoder_decoder:
        return not model.config.is_encoder_decoder

    def logits(first: int, last: int | None) -> list[Tensor]:
        def exchange(module: nn.Module, args: Any, output: Any) -> Any:
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
        plain, others, one = logits(0, 0), logits(1, None), logits(0, 1)
    except (TypeError, KeyError, IndexError):
        return False
    return all(map(torch.equal, plain, others)) and not all(map(torch.equal, plain, one))


class MeanPooling(Attachment):
    """The head reads the mean of all tokens that are no padding, where it expects the first token's state.

    Args:
        model: A classifier whose head reads the first token.
        stack: Its layers.
        inputs: Of a forward pass.
    """

    def __init__(self, model: Any, stack: Stack, inputs: Mapping[str, Any]) -> None:
        base, container = model.base_model, model.get_submodule(stack.container)
        if not _reads_the_first_token(model, container, inputs):
            raise ConfigurationError(
                f"pooling='mean' needs a classifier whose head reads the first token, which "
                f"{type(model).__name__} is not: use pooling='cls'"
            )
        self._mask: Tensor | None = None
        self._base, self._container = base, container
        self.reattach()

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
        return _replaced(output, pooled)

    def detach(self) -> None:
        """Let the head read the first token again."""
        for handle in self._handles:
            handle.remove()

    def reattach(self) -> None:
        """Give it the mean."""
        self._handles = [
            self._base.register_forward_pre_hook(self._keep_mask, with_kwargs=True),
            self._container.register_forward_hook(self._exchange),
        ]

    def merge(self) -> None:
        """Refuse: no weights hold it."""
        raise ConfigurationError(
            "pooling='mean' cannot be merged: no weights of the model hold it; keep it attached"
        )
