"""Recompute blocks in backward instead of keeping what they saved."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, cast

from torch import nn
from torch.utils.checkpoint import (
    checkpoint,  # pyright: ignore[reportUnknownVariableType]  # torch declares few of its types
)

from finetune_common.arguments import explain_arguments
from finetune_common.blocks import find_blocks
from finetune_common.errors import ConfigurationError

__all__ = ["checkpoint_blocks", "find_blocks"]

Output = TypeVar("Output")


@explain_arguments
@contextmanager
def checkpoint_blocks(model: nn.Module) -> Generator[list[nn.Module]]:
    """Within this context the blocks of a model keep only their inputs, and run again in backward.

    Random states are kept with the inputs, so that gradients equal those of a plain run bit for bit.
    An `ActivationCompressor` around this context compresses the inputs.

    Args:
        model: Its outermost lists of modules of one class are its blocks (`find_blocks`).

    Raises:
        ConfigurationError: The model has no such list.

    Source: Chen et al. 2016 (arXiv 1604.06174).

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3)))
        >>> with checkpoint_blocks(model) as blocks:
        ...     loss = model(torch.ones(2, 4)).sum()
        >>> loss.backward()
        >>> len(blocks)
        3
    """
    blocks = find_blocks(model)
    if not blocks:
        raise ConfigurationError(
            f"{type(model).__name__} has no list of modules of one class to checkpoint: use "
            "ActivationCompressor or --activation compress instead"
        )
    # Some libraries, such as Accelerate, set a module's own forward.
    forwards = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)
    try:
        yield blocks
    finally:
        for block, forward in zip(blocks, forwards, strict=True):
            restore_forward(block, forward)


def restore_forward(module: nn.Module, forward: Callable[..., object] | None) -> None:
    """Restore a module's own forward; None restores that of its class."""
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _recomputed(forward: Callable[..., Output], *args: object, **kwargs: object) -> Output:
    run = cast("Callable[..., Output]", checkpoint)
    return run(forward, *args, use_reentrant=False, **kwargs)
