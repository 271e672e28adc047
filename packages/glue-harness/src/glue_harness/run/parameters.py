"""Which parameters an optimizer gets, and which of them decay or have a separate rate."""

from __future__ import annotations

from typing import cast

import torch

from finetune_common.aliases import ParamGroup
from finetune_common.errors import ConfigurationError

__all__ = ["parameter_groups"]


def parameter_groups(
    model: torch.nn.Module, weight_decay: float, head_lr: float | None = None, decay_all: bool = False
) -> list[ParamGroup]:
    """Group trained parameters: matrices decay, biases and norms on request; the head may have its own rate.

    The head is everything outside the base model, and the base model's pooler.

    Returns:
        Groups for `finetune_common.slots.Optimizer.build`, none empty.
    """
    base = cast("torch.nn.Module", model.base_model)
    body = set() if base is model else {id(parameter) for parameter in base.parameters()}
    if isinstance(pooler := getattr(base, "pooler", None), torch.nn.Module):
        body -= {id(parameter) for parameter in pooler.parameters()}
    if head_lr is not None and not body:
        raise ConfigurationError(f"head_lr={head_lr}: this model has no separate head: leave it out")
    groups: dict[tuple[bool, bool], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own_rate = head_lr is not None and id(parameter) not in body
            groups.setdefault((own_rate, decay_all or parameter.ndim >= 2), []).append((name, parameter))
    if not groups:
        raise ConfigurationError("the adaptation froze every parameter: choose another --adaptation")
    return [
        {"params": params, "weight_decay": weight_decay if decays else 0.0}
        | ({"lr": head_lr} if own_rate else {})
        for (own_rate, decays), params in groups.items()
    ]
