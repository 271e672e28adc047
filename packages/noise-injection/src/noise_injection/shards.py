"""Tensors that are spread over processes (DTensor): the part that is here, and sums over all parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["local", "part_of", "shard_groups", "shard_index", "spread", "sum_over_shards"]


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


def spread(part: Tensor, like: Tensor) -> Tensor:
    """Return this process's flat part of a tensor as a tensor that is spread like another one (DTensor).

    Args:
        part: One-dimensional; returned as it is where `like` is plain.
        like: Plain or DTensor.
    """
    if not hasattr(like, "placements"):
        return part
    from torch.distributed.tensor import DTensor

    other: Any = like
    shape, stride = other.shape, other.stride()
    ours = part.view(other.to_local().shape)
    return DTensor.from_local(ours, other.device_mesh, other.placements, shape=shape, stride=stride)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return what this process holds of a whole tensor that is spread like another one, one-dimensional.

    Args:
        whole: A plain tensor; all of it where `like` is plain. What is spread already stays so.
        like: Plain or DTensor.
    """
    if hasattr(like, "placements") and not hasattr(whole, "placements"):
        from torch.distributed.tensor import distribute_tensor

        other: Any = like
        shaped = whole.view(other.shape).to(other.device)
        whole = distribute_tensor(shaped, other.device_mesh, other.placements, src_data_rank=None)
    return local(whole).reshape(-1)


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
    if not any(groups):
        return rows
    rows = rows.clone()
    for process_group in dict.fromkeys(groups):
        index = torch.tensor(
            [i for i, other in enumerate(groups) if other == process_group], device=rows.device
        )
        for group in process_group:
            part = rows[index]
            torch.distributed.all_reduce(part, group=group)
            rows[index] = part
    return rows
