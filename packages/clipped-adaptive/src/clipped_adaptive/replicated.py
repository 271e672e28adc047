"""Values of the whole optimizer, repeated in each parameter's state; a check that it has all parameters."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from finetune_common.aliases import StateDict
from finetune_common.errors import ConfigurationError
from finetune_common.optim.parts import processes

__all__ = ["first_of", "refuse_a_part", "replicate"]

States = Mapping[Tensor, StateDict]


def first_of(states: States, params: Iterable[Tensor], name: str) -> Tensor | None:
    """Return a value that all parameters repeat, from the first one that has it."""
    return next((states[param][name] for param in params if name in states.get(param, {})), None)


def replicate(states: States, name: str, values: Iterable[tuple[Iterable[Tensor], Tensor]]) -> None:
    """Write values into the states of parameters, each in separate memory.

    Args:
        states: The state of each parameter.
        name: The name in the state.
        values: Parameters with state, and the value that all of them repeat.
    """
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for params, value in values:
        for param in params:
            old = states[param].get(name)
            if old is None or old.shape != value.shape or old.dtype != value.dtype:
                states[param][name] = value.to(param.device, copy=True)
            else:
                targets.append(old)
                sources.append(value)
    if targets:
        # The only call of torch that copies a list of tensors at once.
        torch._foreach_copy_(targets, sources)  # pyright: ignore[reportPrivateUsage]


def refuse_a_part(optimizer: torch.optim.Optimizer, setting: str) -> None:
    """Refuse a step on behalf of an optimizer with more parameters, such as torch's ZeroRedundancyOptimizer.

    Each of its processes steps a part of the parameters, and does not know the norm of all.

    Args:
        optimizer: The optimizer that steps.
        setting: Which setting needs all parameters.

    Raises:
        ConfigurationError: The calling optimizer has parameters that this one does not have.
    """
    if processes() == 1:  # the parameters may belong to several optimizers, but all are here
        return
    stepped = {param for group in optimizer.param_groups for param in group["params"]}
    # inspect.currentframe would be public, but may return None.
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.optim.Optimizer) and caller is not optimizer:
            all_params = {param for group in caller.param_groups for param in group["params"]}
            if all_params - stepped:
                raise ConfigurationError(
                    f"{setting} needs the norm of all parameters, but {type(caller).__name__} gives this "
                    'process only a part of them: use clip="local" or "elementwise" without norm, or FSDP2'
                )
        frame = frame.f_back
