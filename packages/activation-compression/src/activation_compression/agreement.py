"""What all processes measure together: they then assign the same widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.distributed as dist

__all__ = ["over_processes", "total_over_processes"]


def over_processes(
    sensitivities: Mapping[str, float], elements: Mapping[str, int], least: Mapping[str, int]
) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Return sums over all processes of the process group, if there is one: they then agree on the widths."""
    measured = _of_all_processes((sensitivities, elements, least))
    keys = dict.fromkeys(key for _, own, _ in measured for key in own)
    return (
        {key: sum(own.get(key, 0.0) for own, _, _ in measured) for key in keys},
        {key: sum(own.get(key, 0) for _, own, _ in measured) for key in keys},
        {key: max(own.get(key, 1) for *_, own in measured) for key in keys},
    )


def total_over_processes(values: Sequence[float]) -> list[float]:
    """Return the sums of numbers over all processes of the process group, if there is one."""
    return [sum(own) for own in zip(*_of_all_processes(values), strict=True)]


def _of_all_processes(mine: Any) -> list[Any]:
    found = [mine]
    if dist.is_available() and dist.is_initialized():
        found *= dist.get_world_size()
        dist.all_gather_object(found, mine)
    return found
