"""A model's head, and the embeddings in front of its layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment, Place
from parameter_efficient.blocks import Stack
from parameter_efficient.forward import DOES_NOT_RUN, Inputs, logits_of, undisturbed, valueless
from parameter_efficient.typed import named_modules

__all__ = ["FrozenInput", "head_parameters"]


def _detached(module: nn.Module, args: object, output: object) -> object:
    return tree_map_only(Tensor, torch.Tensor.detach, output)


def _behind(model: nn.Module, stacks: list[Stack], inputs: Inputs) -> set[int]:
    """Return the ids of parameters behind the blocks: their gradient passes no block."""
    blocks = [block for stack in stacks for block in stack.blocks.values()]
    within = {id(parameter) for block in blocks for parameter in block.parameters()}
    outside = [p for p in model.parameters() if id(p) not in within and p.is_floating_point()]
    flags = [p.requires_grad for p in outside]
    with undisturbed(model), torch.enable_grad():
        for block in blocks:
            block.register_forward_hook(_detached)
        for parameter in outside:
            parameter.requires_grad_(True)
        try:
            logits = [output for output in logits_of(model, inputs) if output.requires_grad]
            total = sum(output.float().sum() for output in logits) if logits else None
            if not isinstance(total, Tensor):
                return set()
            gradients = cast(  # torch's types forget allow_unused
                "tuple[Tensor | None, ...]", torch.autograd.grad(total, outside, allow_unused=True)
            )
        except DOES_NOT_RUN as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigurationError(
                f"{type(model).__name__} has no backward pass in evaluation mode ({reason}), so its head "
                "cannot be found: pass head='none', and name the head's modules in also_train"
            ) from error
        finally:
            for parameter, flag in zip(outside, flags, strict=True):
                parameter.requires_grad_(flag)
    return {id(p) for p, gradient in zip(outside, gradients, strict=True) if gradient is not None}


def _body(model: nn.Module, stacks: list[Stack]) -> list[nn.Module]:
    """Return all but the head: the base model, or, if the model names none, the modules around the blocks."""
    base = getattr(model, "base_model", model)
    if base is not model:
        return [base]
    return [model.get_submodule(stack.container) for stack in stacks if stack.container]


def _has_head(model: nn.Module) -> bool:
    """Return whether a model is more than its base model."""
    return getattr(model, "base_model", model) is not model


def head_parameters(model: nn.Module, stacks: list[Stack], inputs: Inputs, choice: str | None) -> list[Place]:
    """Return the head's parameters: those behind the blocks and outside of the base model, and its pooler.

    Args:
        model: The model.
        stacks: Its blocks.
        inputs: Inputs of a forward pass.
        choice: train or none; null for train, and for none in a language model.

    Returns:
        Module and attribute of each; nothing for a model without logits.

    Raises:
        ConfigurationError: The head is quantised, and cannot train.
    """
    vocabulary: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    if choice == "none" or (choice is None and vocabulary is not None):
        return []
    body = _body(model, stacks)
    behind: set[int] = set()
    if valueless(model) and _has_head(model):
        behind = {id(p) for p in model.parameters()}
    elif not valueless(model) and body:
        behind = _behind(model, stacks, inputs)
    poolers = [m for part in body for name, m in named_modules(part) if "pool" in name.rpartition(".")[2]]
    inner = {id(p) for part in body for p in part.parameters()}
    inner -= {id(p) for pooler in poolers for p in pooler.parameters()}
    places = {
        (module, name): parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    if behind:
        for (module, name), parameter in places.items():
            if not parameter.is_floating_point() and id(parameter) not in inner:
                raise ConfigurationError(
                    f"the head's {type(module).__name__}.{name} is quantised and cannot train: name its "
                    "module in llm_int8_skip_modules when you load the model"
                )
    vocabulary_ids = {id(p) for p in vocabulary.parameters()} if vocabulary is not None else set[int]()
    return [
        place
        for place, p in places.items()
        if id(p) in vocabulary_ids or (id(p) in behind and id(p) not in inner)
    ]


class FrozenInput(Attachment):
    """Stop gradients at the first layer's input, as long as the embeddings are frozen.

    Activation checkpointing makes the embeddings' output require a gradient, so the backward pass would run
    through every frozen layer.

    Args:
        first: The first layer.
        before: Parameters that may come before it.
    """

    def __init__(self, first: nn.Module, before: Iterable[nn.Parameter]) -> None:
        self._before, self._first = list(before), first
        self.reattach()

    def _cut(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]] | None:
        if any(parameter.requires_grad for parameter in self._before):
            return None
        if args:
            return (cast(Tensor, args[0]).detach(), *args[1:]), kwargs
        first, states = next((name, value) for name, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, first: states.detach()}

    def detach(self) -> None:
        """Let gradients through again."""
        self._handle.remove()

    def reattach(self) -> None:
        """Stop gradients."""
        self._handle = self._first.register_forward_pre_hook(self._cut, with_kwargs=True)

    def merge(self) -> None:
        """Do nothing: the output does not depend on it."""
