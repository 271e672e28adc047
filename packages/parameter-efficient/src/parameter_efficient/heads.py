"""A model's head, and the embeddings in front of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment, Place
from parameter_efficient.blocks import Stack, is_projection
from parameter_efficient.forward import (
    DOES_NOT_RUN,
    Inputs,
    floating,
    logits_of,
    outputs_of,
    run,
    undisturbed,
    valueless,
)
from parameter_efficient.typed import named_modules

__all__ = ["FrozenInput", "head_parameters", "is_last_matrix", "vocabulary_of"]


def vocabulary_of(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """Return a language model's output vocabulary, as it names it; or else the matrices that look like one.

    These have the shape of the table that looks up the inputs (the largest, if there are several).

    Args:
        model: The model.
        inputs: Inputs of a forward pass.
    """
    names_it: Callable[[], object] | None = getattr(model, "get_output_embeddings", None)
    if names_it is not None:
        named = names_it()
        return [named] if isinstance(named, nn.Module) else []
    tables: list[torch.Size] = []
    given = [value.data_ptr() for value in inputs.values() if isinstance(value, Tensor)]

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and args[0].data_ptr() in given:
            tables.append(cast(Tensor, module.weight).shape)

    with undisturbed(model):
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.register_forward_pre_hook(note)
        outputs_of(model, inputs)
    shape = max(tables, default=None)
    alike = [
        m
        for m in _matrices(model)
        if isinstance(w := getattr(m, "weight", None), Tensor) and w.shape == shape
    ]
    return [module for module in alike if is_projection(module)]


def _matrices(model: nn.Module) -> list[nn.Module]:
    """Return the modules that hold a matrix or a kernel, and look up nothing."""
    return [
        module
        for module in model.modules()
        if not isinstance(module, nn.Embedding) and any(p.ndim > 1 for p in module.parameters(recurse=False))
    ]


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def _behind(
    model: nn.Module, blocks: list[nn.Module], spared: list[nn.Module], inputs: Inputs
) -> tuple[set[int], list[nn.Module]]:
    """Return what lies behind blocks: ids of parameters, and the last blocks.

    A gradient of an output reaches these parameters, and passes no block; and no block reads what they make.
    A gradient reaches the output of the last blocks without passing another. Outputs that spared modules make
    do not count.
    """
    within = _ids(blocks)
    outside = [p for p in model.parameters() if id(p) not in within and p.is_floating_point()]
    flags = [p.requires_grad for p in outside]
    read: list[Tensor] = []
    made: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: object, kwargs: object) -> None:
        read.extend(floating((args, kwargs)))

    def cut(module: nn.Module, args: object, output: object) -> object:
        def leaf(tensor: Tensor) -> Tensor:
            tensor = tensor.detach()
            if tensor.is_floating_point():
                made.append((module, tensor.requires_grad_()))
                tensor = tensor.view_as(tensor)  # it may be changed in place, which a leaf may not
            return tensor

        return tree_map_only(Tensor, leaf, output)

    with undisturbed(model), torch.enable_grad():
        for block in blocks:
            block.register_forward_pre_hook(note, with_kwargs=True)
            block.register_forward_hook(cut)
        for parameter in outside:
            parameter.requires_grad_(True)
        try:
            words = [p for module in spared for p in module.parameters() if p.requires_grad]
            outputs = [one for one in _read_out(model, inputs) if not _gradients([one], words)]
            reached = _gradients(outputs, [*outside, *(tensor for _, tensor in made)])
            consumed = _gradients(read, outside)
        except DOES_NOT_RUN as error:
            if spared:
                return set(), []
            reason = " ".join(str(error).split())[:120]
            raise ConfigurationError(
                f"{type(model).__name__} has no backward pass in evaluation mode ({reason}), so its head "
                "cannot be found: pass head='none', and name the head's modules in also_train"
            ) from error
        finally:
            for parameter, flag in zip(outside, flags, strict=True):
                parameter.requires_grad_(flag)
    behind = {id(p) for p in outside if id(p) in reached and id(p) not in consumed}
    return behind, [module for module, tensor in made if id(tensor) in reached]


def _gradients(outputs: list[Tensor], tensors: Sequence[Tensor]) -> set[int]:
    """Return the ids of the tensors that a gradient reaches."""
    parts = [output.float().sum() for output in outputs if output.requires_grad]
    if not parts or not tensors:
        return set()
    gradients = cast(  # torch's types forget allow_unused
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(torch.stack(parts).sum(), tensors, allow_unused=True, retain_graph=True),
    )
    return {id(tensor) for tensor, gradient in zip(tensors, gradients, strict=True) if gradient is not None}


def _body(model: nn.Module, stacks: list[Stack]) -> list[nn.Module]:
    """Return the base model, or, if the model names none, the modules around the blocks."""
    base = getattr(model, "base_model", model)
    if base is not model:
        return [base]
    return [model.get_submodule(stack.container) for stack in stacks if stack.container]


def is_last_matrix(model: nn.Module, stacks: list[Stack]) -> bool:
    """Return whether a model's head is its last matrix: it is of plain torch, and has no blocks."""
    return not stacks and not hasattr(model, "base_model")


def _read_out(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all that a model outputs; of one that is its own base model the logits: it outputs states."""
    if getattr(model, "base_model", None) is model:
        return logits_of(model, inputs)
    return floating(run(model, inputs))


def head_parameters(
    model: nn.Module,
    stacks: list[Stack],
    vocabulary: list[nn.Module],
    inputs: Inputs,
    choice: str | None,
) -> list[Place]:
    """Return the head's parameters: those behind the blocks and outside of the base model, and its pooler.

    A model of plain torch without blocks has its last matrix as head, and what is behind that.

    Args:
        model: The model.
        stacks: Its blocks.
        vocabulary: Its output vocabulary, from `vocabulary_of`.
        inputs: Inputs of a forward pass.
        choice: train or none; null for train, except for the vocabulary and what feeds it alone.

    Returns:
        Module and attribute of each; nothing for a model without a head.

    Raises:
        ConfigurationError: The head is quantised, and cannot train.
    """
    spared = vocabulary if choice is None else []
    if choice == "none" or (spared and valueless(model)):
        return []
    body, named = _body(model, stacks), hasattr(model, "base_model")
    blocks = [block for stack in stacks for block in stack.blocks.values()]
    found: set[int] = set()
    if valueless(model):
        found = _ids([model]) if getattr(model, "base_model", model) is not model else found
    elif body or not named:
        guessed = is_last_matrix(model, stacks)
        matrices = [m for m in _matrices(model) if m not in spared] if guessed else []
        found, last = _behind(model, blocks or matrices, spared, inputs)
        found |= _ids(module for module in last if module in matrices)
    poolers = [m for part in body for name, m in named_modules(part) if "pool" in name.rpartition(".")[2]]
    inner = _ids(body) - _ids(poolers)
    places = {
        (module, name): parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    if found and body and not spared:
        for (module, name), parameter in places.items():
            if not parameter.is_floating_point() and id(parameter) not in inner:
                raise ConfigurationError(
                    f"the head's {type(module).__name__}.{name} is quantised and cannot train: name its "
                    "module in llm_int8_skip_modules when you load the model"
                )
    chosen = (found - inner - _ids(spared)) | (_ids(vocabulary) if choice == "train" else set[int]())
    return [place for place, parameter in places.items() if id(parameter) in chosen]


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
