"""Sums of measurements over all processes, so that they assign the same widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch.distributed as dist

from activation_compression.allocation import Way
from activation_compression.measured import Measured

__all__ = ["over_processes", "total_over_processes"]

T = TypeVar("T")


def over_processes(of_this_process: Measured) -> Measured:
    """Return the sums of a measurement over all processes of the process group, if there is one.

    A way to group a tensor counts only if all processes measured it; smaller batches allow fewer ways.
    """
    measured = _of_all_processes(of_this_process)
    keys = dict.fromkeys(key for process in measured for key in process.ways)
    ways: dict[str, dict[str, Way]] = {}
    for key in keys:
        known = [process.ways[key] for process in measured if key in process.ways]
        ways[key] = {
            way: Way(
                sum(ways_there[way].sensitivity for ways_there in known),
                sum(ways_there[way].groups for ways_there in known),
            )
            for way in known[0]
            if all(way in ways_there for ways_there in known)
        }
    return Measured(
        ways,
        {key: sum(process.elements.get(key, 0) for process in measured) for key in keys},
        {key: max(process.least.get(key, 1) for process in measured) for key in keys},
        frozenset[str]().union(*(process.finer for process in measured)),
    )


def total_over_processes(values: Sequence[float]) -> list[float]:
    """Return the sums of numbers over all processes of the process group, if there is one."""
    return [sum(of_processes) for of_processes in zip(*_of_all_processes(values), strict=True)]


def _of_all_processes(value: T) -> list[T]:
    values = [value]
    if dist.is_available() and dist.is_initialized():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)  # pyright: ignore[reportUnknownMemberType]  # torch has no types
    return values
