"""Euclidean norms of whole tensors, including sharded ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune_common.aliases import is_sharded
from finetune_common.compiled import calls_decide

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["euclidean_norm", "multiplies", "norm_of", "whole_norms"]

BLOCK = 2**19
"""Elements whose squares are summed in their dtype: with 23 million, float32 is off by 3e-4."""


def euclidean_norm(values: Tensor, dim: int | None = None, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return the Euclidean norm of all values, or along a dimension.

    This is torch's own reduction; `whole_norms` is for sharded tensors, and for squares that overflow.

    Args:
        values: A plain tensor.
        dim: The dimension that is reduced; all by default.
        dtype: In which squares are summed, and of the result; by default that of the values.

    Examples:
        >>> euclidean_norm(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), dim=1)
        tensor([5., 2.])
    """
    # torch.linalg has no types.
    return torch.linalg.vector_norm(values, dim=dim, dtype=dtype)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def whole_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor; of a DTensor, that of the whole tensor.

    Squares are summed in float64 if float32 would overflow, so that a finite float32 tensor has a finite
    norm. Processes exchange one vector for each dimension of a mesh over which tensors are sharded.

    Args:
        tensors: Plain tensors and DTensors, on any devices.

    Returns:
        float64, one-dimensional, one norm per tensor, on the first one's device, without waiting for a GPU.

    Examples:
        >>> whole_norms([torch.tensor([3.0, 4.0]), torch.full((4,), 2.0**100)]).tolist() == [5.0, 2.0**101]
        True
    """
    local = [_local(tensor) for tensor in tensors]
    device = local[0].device
    norms: dict[int, Tensor] = {}
    kinds = [(tensor.device, multiplies(tensor)) for tensor in local]
    for kind in dict.fromkeys(kinds):
        indices = [i for i, other in enumerate(kinds) if other == kind]
        alike = [local[i] for i in indices]
        for i, norm in zip(indices, _by_products(alike) if kind[1] else _over_lists(alike), strict=True):
            norms[i] = norm if norm.device == device else norm.to(device)
    return _over_shards(torch.stack([norms[i] for i in range(len(local))]), tensors)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_sharded(tensor) else tensor


def multiplies(tensor: Tensor) -> bool:
    """Whether `norm_of` takes a tensor: on a CPU a scalar product is twice as fast as a reduction."""
    wide = tensor.dtype in (torch.float32, torch.float64)
    return wide and tensor.is_contiguous() and not calls_decide(tensor.device)


def norm_of(tensor: Tensor) -> float:
    """Return the Euclidean norm of one contiguous CPU tensor of float32 or float64.

    Squares are summed in the tensor's dtype within a block, where float32 is off by 1e-6, and in float64
    beyond.

    Examples:
        >>> norm_of(torch.tensor([3.0, 4.0]))
        5.0
    """
    flat = tensor.view(-1)
    blocks = torch.split(flat, BLOCK) if flat.numel() > BLOCK else (flat,)
    squares = sum(torch.dot(block, block).item() for block in blocks)
    return math.sqrt(squares) if math.isfinite(squares) else _scaled(flat).item()


def _by_products(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.tensor([norm_of(tensor) for tensor in tensors], dtype=torch.float64).unbind())


def _scaled(tensor: Tensor) -> Tensor:
    """The norm of numbers whose squares overflow their dtype."""
    if tensor.dtype != torch.float64:
        return euclidean_norm(tensor, dtype=torch.float64)
    largest = tensor.abs().max()
    return euclidean_norm(tensor / largest) * largest


def _over_lists(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch._foreach_norm(list(tensors), 2, dtype=torch.float64)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]  # it has no public name


def _over_shards(norms: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Combine the norms of the processes' parts."""
    members: dict[tuple[DeviceMesh, int], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if not is_sharded(tensor):
            continue
        for dim, placement in enumerate(tensor.placements):
            if placement.is_shard():
                members.setdefault((tensor.device_mesh, dim), []).append(i)
    for (mesh, dim), indices in members.items():
        parts = list(norms.unbind())
        squares = torch.stack([parts[i] for i in indices]).square_()
        torch.distributed.all_reduce(squares, group=mesh.get_group(dim))  # pyright: ignore[reportUnknownMemberType]  # untyped
        for i, norm in zip(indices, squares.sqrt_().unbind(), strict=True):
            parts[i] = norm
        norms = torch.stack(parts)
    return norms
