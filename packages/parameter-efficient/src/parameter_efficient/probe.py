"""A proof that an adaptation acts: in a tiny backward pass, each parameter gets a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Tokens
from parameter_efficient.blocks import twins
from parameter_efficient.forward import DOES_NOT_RUN, Inputs, floating, predictions, run, undisturbed

__all__ = ["check_that_all_acts"]

DRAWS = 3
"""Number of draws of random values; a parameter acts if it acts in one of them (a relu may be silent)."""


def _put_first(numbers: Sequence[int]) -> Callable[..., object]:
    """Return a hook that exchanges the first tokens that a module looks up."""

    def exchanged(ids: Tensor) -> Tensor:
        if ids.is_floating_point():
            return ids  # of a head that shares the vocabulary
        first = ids.new_tensor(numbers[: ids.shape[-1]])
        return torch.cat([first.expand(*ids.shape[:-1], -1), ids[..., len(first) :]], dim=-1)

    def put(module: nn.Module, args: object, kwargs: object) -> object:
        return tree_map_only(Tensor, exchanged, (args, kwargs))

    return put


def _gradients(
    model: nn.Module, inputs: Inputs, trained: list[nn.Parameter], tokens: Iterable[Tokens], head: set[int]
) -> list[Tensor | None]:
    """Return the gradients of what a model predicts; a head's, of all that it outputs."""
    with undisturbed(model), torch.enable_grad():
        for module, numbers in tokens:
            module.register_forward_pre_hook(_put_first(numbers), with_kwargs=True)
        try:
            output = run(model, inputs)
        except ConfigurationError:
            raise
        except DOES_NOT_RUN as error:
            reason = " ".join(str(error).split())[:120]
            raise ConfigurationError(
                f"{type(model).__name__} does not run with this method ({reason}): choose other layers, "
                "targets= or another method"
            ) from error
        try:
            gradients = _of_sum(predictions(output), trained)
            of_all = _of_sum(floating(output), [parameter for parameter in trained if id(parameter) in head])
        except DOES_NOT_RUN as error:
            raise ConfigurationError(
                f"{type(model).__name__} has no backward pass in evaluation mode "
                f"({' '.join(str(error).split())[:120]}): pass probe=False to adapt it without this proof"
            ) from error
    heads = iter(of_all)
    return [
        next(heads) if id(parameter) in head else gradient
        for parameter, gradient in zip(trained, gradients, strict=True)
    ]


def _of_sum(outputs: list[Tensor], trained: list[nn.Parameter]) -> list[Tensor | None]:
    """Return the gradients of a sum of outputs with random weights."""
    outputs = [output for output in outputs if output.requires_grad]
    if not outputs or not trained:
        return [None] * len(trained)
    weights = [
        torch.randn(output.shape, generator=torch.Generator().manual_seed(7)).to(output) for output in outputs
    ]
    total = torch.stack(
        [(w * output).float().sum() for w, output in zip(weights, outputs, strict=True)]
    ).sum()
    gradients = torch.autograd.grad(total, trained, allow_unused=True, retain_graph=True)
    return [*cast("tuple[Tensor | None, ...]", gradients)]  # torch's types forget allow_unused


def _silent(
    names: list[str], model: nn.Module, inputs: Inputs, tokens: Iterable[Tokens], head: set[int]
) -> list[str]:
    """Return the parameters whose gradient is missing or 0 in all draws."""
    by_name = dict(model.named_parameters())
    left = list(names)
    for draw in range(DRAWS):
        generator = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for name in names:
                noise = torch.randn(by_name[name].shape, generator=generator)
                by_name[name].add_(0.1 * noise.to(by_name[name]))
        gradients = _gradients(model, inputs, [by_name[name] for name in left], tokens, head)
        left = [
            name
            for name, gradient in zip(left, gradients, strict=True)
            if gradient is None or not bool(gradient.any())
        ]
        if not left:
            break
    return left


def _names_in_other_experts(model: nn.Module, blocks: Iterable[str], name: str) -> Iterator[str]:
    for block in blocks:
        if name.startswith(f"{block}."):
            inner = twins(model.get_submodule(block), name.removeprefix(f"{block}."))
            yield from (f"{block}.{twin}" for twin in inner)


def check_that_all_acts(
    model: nn.Module, inputs: Inputs, tokens: Iterable[Tokens], blocks: Iterable[str], head: set[int]
) -> None:
    """Refuse an adapted model in which a trainable parameter gets no gradient.

    Trainable values are disturbed meanwhile, so that a B of zeros hides nothing, and restored bit for bit.
    Experts that these few tokens do not reach are excused if others like them act.

    Args:
        model: The adapted model.
        inputs: Inputs of a forward pass.
        tokens: Tokens that have to be looked up.
        blocks: Names of the model's blocks.
        head: Ids of the head's parameters, which may act on any output.

    Raises:
        ConfigurationError: Names a parameter that does not act.
    """
    original = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    by_name = dict(model.named_parameters())
    try:
        silent = _silent(list(original), model, inputs, tokens, head)
    finally:
        with torch.no_grad():
            for name, value in original.items():
                by_name[name].copy_(value)
    acting = {name: original[name].shape for name in original.keys() - silent}
    silent = [
        name
        for name in silent
        if not any(
            acting.get(other) == by_name[name].shape for other in _names_in_other_experts(model, blocks, name)
        )
    ]
    if silent:
        others = f" and {len(silent) - 1} more of {len(original)} tensors" if len(silent) > 1 else ""
        raise ConfigurationError(
            f"{silent[0]}{others} would change nothing in {type(model).__name__}: choose other layers, "
            "targets= or another method"
        )
