"""What belongs to the whole optimizer, repeated in the state of each parameter, and who may keep it."""

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
    """Return a value that all of the parameters repeat, from the first one that has it."""
    return next((states[param][name] for param in params if name in states.get(param, {})), None)


def replicate(states: States, params: Iterable[Tensor], name: str, value: Tensor) -> None:
    """Write a value into the state of each parameter that has a state, in memory of its own."""
    kept = []
    for param in params:
        own = states[param].get(name)
        if own is None or own.shape != value.shape or own.dtype != value.dtype:
            states[param][name] = value.to(param.device, copy=True)
        else:
            kept.append(own)
    if kept:
        torch._foreach_copy_(kept, [value] * len(kept))


def refuse_a_part(optimizer: torch.optim.Optimizer, setting: str) -> bool:
    """Refuse to step for an optimizer that holds more parameters, such as torch's ZeroRedundancyOptimizer.

    Its processes step a part of the parameters each, and the norm of a part is not that of all.

    Args:
        optimizer: The optimizer that steps.
        setting: Which setting needs all parameters.

    Returns:
        True.

    Raises:
        ConfigurationError: Another optimizer's step is calling, and has parameters that this one has not.
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
