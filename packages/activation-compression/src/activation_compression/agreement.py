"""What all processes measure together: they then assign the same widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from activation_compression.allocation import Way
from activation_compression.measured import Measured

__all__ = ["over_processes", "total_over_processes"]


def over_processes(mine: Measured) -> Measured:
    """Return sums over all processes of the process group, if there is one: they then agree on the widths.

    A way to group a tensor that some process does not know, as its batch is smaller, is not chosen.
    """
    measured = _of_all_processes(mine)
    keys = dict.fromkeys(key for own in measured for key in own.ways)
    ways: dict[str, dict[str, Way]] = {}
    for key in keys:
        known = [own.ways[key] for own in measured if key in own.ways]
        ways[key] = {
            way: Way(sum(own[way].sensitivity for own in known), sum(own[way].groups for own in known))
            for way in known[0]
            if all(way in own for own in known)
        }
    return Measured(
        ways,
        {key: sum(own.elements.get(key, 0) for own in measured) for key in keys},
        {key: max(own.least.get(key, 1) for own in measured) for key in keys},
        frozenset().union(*(own.finer for own in measured)),
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
