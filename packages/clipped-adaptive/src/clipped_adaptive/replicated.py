"""Values of the whole optimizer, repeated in each parameter's state, and a check that it has all."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError

__all__ = ["first_of", "refuse_a_part", "replicate"]

States = Mapping[Tensor, dict[str, Any]]


def first_of(states: States, params: Iterable[Tensor], name: str) -> Tensor | None:
    """Return a value that all parameters repeat, from the first that has it."""
    return next((states[param][name] for param in params if name in states.get(param, {})), None)


def replicate(states: States, name: str, values: Iterable[tuple[Iterable[Tensor], Tensor]]) -> None:
    """Write values into the states of parameters, each in separate memory.

    Args:
        states: The state of each parameter.
        name: The name in the state.
        values: Parameters with state, and the value that all of them repeat.
    """
    targets, sources = [], []
    for params, value in values:
        for param in params:
            own = states[param].get(name)
            if own is None or own.shape != value.shape or own.dtype != value.dtype:
                states[param][name] = value.to(param.device, copy=True)
            else:
                targets.append(own)
                sources.append(value)
    if targets:
        torch._foreach_copy_(targets, sources)


def refuse_a_part(optimizer: torch.optim.Optimizer, setting: str) -> bool:
    """Refuse to step for an optimizer that holds more parameters, such as torch's ZeroRedundancyOptimizer.

    Each of its processes steps a part of the parameters, whose norm is not that of all.

    Args:
        optimizer: The optimizer that steps.
        setting: Which setting needs all parameters.

    Returns:
        True.

    Raises:
        ConfigurationError: The calling optimizer has parameters that this one does not have.
    """
    own = {param for group in optimizer.param_groups for param in group["params"]}
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.optim.Optimizer) and caller is not optimizer:
            held = {param for group in caller.param_groups for param in group["params"]}
            if held - own:
                raise ConfigurationError(
                    f"{setting} needs the norm of all parameters, and {type(caller).__name__} gives this "
                    'process a part of them: use clip="local" or "elementwise" without norm, or FSDP2'
                )
        frame = frame.f_back
    return True
