"""Euclidean norms of whole tensors, those that are spread over processes included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["whole_norms"]


def whole_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each tensor, of the whole one where it is a DTensor.

    Squares are summed in float64 where float32 is too narrow, so that a finite float32 tensor has a finite
    norm. Processes exchange one vector for each dimension of a mesh over which tensors are sharded.

    Args:
        tensors: Plain tensors and DTensors, on any devices.

    Returns:
        float64, one-dimensional, one norm a tensor, on the first one's device. A GPU is not waited for.

    Examples:
        >>> whole_norms([torch.tensor([3.0, 4.0]), torch.full((4,), 1e30)]).tolist()
        [5.0, 2.0000000249504794e+30]
    """
    local = [_local(tensor) for tensor in tensors]
    device = local[0].device
    norms: list[Tensor | None] = [None] * len(local)
    for kind in dict.fromkeys(map(_kind, local)):
        indices = [i for i, tensor in enumerate(local) if _kind(tensor) == kind]
        own = [local[i] for i in indices]
        for i, norm in zip(indices, _by_products(own) if kind[1] else _over_lists(own), strict=True):
            norms[i] = norm if norm.device == device else norm.to(device)
    return _over_shards(torch.stack(norms), tensors)  # type: ignore[arg-type]


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _kind(tensor: Tensor) -> tuple[torch.device, bool]:
    """The device, and whether scalar products give norms: on a CPU they are twice as fast as reductions."""
    wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor.device, wide and tensor.device.type == "cpu" and tensor.is_contiguous()


def _by_products(tensors: Sequence[Tensor]) -> list[Tensor]:
    flat = [tensor.view(-1) for tensor in tensors]
    norms = torch.stack([torch.dot(tensor, tensor).double() for tensor in flat]).sqrt_()
    all_finite = torch.equal(norms - norms, torch.zeros_like(norms))
    return list(norms.unbind()) if all_finite else [_scaled(tensor) for tensor in flat]


def _scaled(tensor: Tensor) -> Tensor:
    """The norm of numbers whose squares are too large for their dtype."""
    if tensor.dtype != torch.float64:
        return torch.linalg.vector_norm(tensor, dtype=torch.float64)
    largest = tensor.abs().max()
    return torch.linalg.vector_norm(tensor / largest) * largest


def _over_lists(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch._foreach_norm(list(tensors), 2, dtype=torch.float64))


def _over_shards(norms: Tensor, tensors: Sequence[Any]) -> Tensor:
    """Combine the norms of the parts that processes hold."""
    members: dict[tuple[Any, int], list[int]] = {}
    for i, tensor in enumerate(tensors):
        for dim, placement in enumerate(getattr(tensor, "placements", ())):
            if placement.is_shard():
                members.setdefault((tensor.device_mesh, dim), []).append(i)
    for (mesh, dim), indices in members.items():
        parts = list(norms.unbind())
        squares = torch.stack([parts[i] for i in indices]).square_()
        torch.distributed.all_reduce(squares, group=mesh.get_group(dim))
        for i, whole in zip(indices, squares.sqrt_().unbind(), strict=True):
            parts[i] = whole
        norms = torch.stack(parts)
    return norms
