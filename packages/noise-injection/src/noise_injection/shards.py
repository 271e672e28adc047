"""Tensors that are spread over processes (DTensor): the local part, and sums over all parts."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from finetune_common.aliases import is_sharded

__all__ = [
    "add_over_processes",
    "flat",
    "local",
    "part_of",
    "shaped",
    "shard_groups",
    "shard_index",
    "spread",
    "sum_over_shards",
]


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return the part of a tensor that this process holds; a plain tensor as it is.

    Args:
        tensor: Plain or DTensor.
        like: A DTensor whose placement the part should have; otherwise the tensor keeps its placement.
    """
    if not is_sharded(tensor):
        return tensor
    if is_sharded(like) and like.placements != tensor.placements:
        tensor = tensor.redistribute(placements=like.placements)
    return tensor.to_local()


def flat(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return `local` as one dimension, a view if its memory allows; a complex number is two real ones."""
    part = local(tensor, like)
    return (torch.view_as_real(part.resolve_conj()) if part.is_complex() else part).reshape(-1)


def shaped(row: Tensor, like: Tensor) -> Tensor:
    """Return what `flat` made of a plain tensor in that tensor's shape and kind of number."""
    return torch.view_as_complex(row.view(*like.shape, 2)) if like.is_complex() else row.view(like.shape)


def spread(part: Tensor, like: Tensor) -> Tensor:
    """Return this process's flat part of a tensor as a tensor with the placement of another one (DTensor).

    Args:
        part: One-dimensional; returned as it is if `like` is plain.
        like: Plain or DTensor.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    shape, stride = like.shape, like.stride()
    whole = shaped(part, like.to_local())
    return DTensor.from_local(whole, like.device_mesh, like.placements, shape=shape, stride=stride)


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a whole tensor, for the placement of another one, one-dimensional.

    Args:
        whole: A plain tensor, returned whole if `like` is plain. A DTensor keeps its placement.
        like: Plain or DTensor.
    """
    if is_sharded(like) and not is_sharded(whole):
        from torch.distributed.tensor import distribute_tensor

        whole = shaped(flat(whole), like).to(like.device)
        whole = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return flat(whole)


def _sharded_dimensions(tensor: Tensor) -> list[int]:
    placements = tensor.placements if is_sharded(tensor) else ()
    return [i for i, placement in enumerate(placements) if not placement.is_replicate()]


def shard_groups(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Return the process groups over which sums of the parts add up to the sum of the whole tensor."""
    if not is_sharded(tensor):
        return ()
    return tuple(tensor.device_mesh.get_group(i) for i in _sharded_dimensions(tensor))


def shard_index(tensor: Tensor) -> int:
    """Return the number of the part that this process holds; replicas of a part have the same number."""
    if not is_sharded(tensor):
        return 0
    index = 0
    for i in _sharded_dimensions(tensor):
        index = index * tensor.device_mesh.size(i) + tensor.device_mesh.get_local_rank(i)
    return index


def sum_over_shards(rows: Tensor, groups: list[tuple[ProcessGroup, ...]]) -> Tensor:
    """Turn sums over this process's parts into sums over whole tensors.

    Args:
        rows: Of shape (P, k): k sums for each of P tensors.
        groups: `shard_groups` of each tensor.
    """
    if not any(groups):
        return rows
    rows = rows.clone()
    for process_groups in dict.fromkeys(groups):
        index = torch.tensor(
            [i for i, other in enumerate(groups) if other == process_groups], device=rows.device
        )
        for group in process_groups:
            part = rows[index]
            add_over_processes(part, group)
            rows[index] = part
    return rows


def add_over_processes(tensor: Tensor, group: ProcessGroup | None) -> None:
    """Add up a tensor over the processes of a group (None for all), in place."""
    dist.all_reduce(tensor, group=group)  # pyright: ignore[reportUnknownMemberType]  # torch gives it no types
