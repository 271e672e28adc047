"""Tensors that are spread over processes (DTensor): the part that is here, and sums over all parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["local", "shard_groups", "shard_index", "sum_over_shards"]


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the part of a tensor that this process holds: a plain tensor as it is.

    Args:
        tensor: Plain or DTensor.
        like: Whose placement the part is to have; None leaves the tensor where it is.
    """
    if not hasattr(tensor, "to_local"):
        return tensor
    sharded: Any = tensor
    placements = getattr(like, "placements", sharded.placements)
    if placements != sharded.placements:
        sharded = sharded.redistribute(placements=placements)
    return sharded.to_local()


def _sharded_dimensions(tensor: Any) -> list[int]:
    return [i for i, p in enumerate(getattr(tensor, "placements", ())) if not p.is_replicate()]


def shard_groups(tensor: Tensor) -> tuple[Any, ...]:
    """Return the process groups over which a sum of this process's part becomes that of the whole tensor."""
    sharded: Any = tensor
    return tuple(sharded.device_mesh.get_group(i) for i in _sharded_dimensions(sharded))


def shard_index(tensor: Tensor) -> int:
    """Return which part of a tensor this process holds; replicas of a part have the same number."""
    sharded: Any = tensor
    index = 0
    for i in _sharded_dimensions(sharded):
        index = index * sharded.device_mesh.size(i) + sharded.device_mesh.get_local_rank(i)
    return index


def sum_over_shards(rows: Tensor, groups: list[tuple[Any, ...]]) -> Tensor:
    """Return sums over this process's parts as sums over whole tensors.

    Args:
        rows: Of shape (P, k): k sums for each of P tensors.
        groups: `shard_groups` of each tensor.
    """
    rows = rows.clone()
    for own in dict.fromkeys(groups):
        index = torch.tensor([i for i, other in enumerate(groups) if other == own], device=rows.device)
        for group in own:
            part = rows[index]
            torch.distributed.all_reduce(part, group=group)
            rows[index] = part
    return rows
