"""Parameters as flat rows: what the update rules run over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError
from finetune_common.optim.run import Row

__all__ = ["flat_row", "shard_index"]


def flat_row(param: Tensor, grad: Tensor, *state: Tensor) -> Row:
    """Return one-dimensional views of this process's part of a parameter, its gradient and its state.

    The gradient is copied when it lies otherwise in memory than the parameter.

    Raises:
        ConfigurationError: A sparse or complex gradient, or a parameter with gaps in memory.
    """
    if grad.is_sparse or grad.is_complex():
        kind = "sparse" if grad.is_sparse else "complex"
        raise ConfigurationError(f"a {kind} gradient is not supported: use a dense real one (sparse=False)")
    if hasattr(param, "to_local"):
        if grad.placements != param.placements:  # type: ignore[attr-defined]
            grad = grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
        param, grad, *state = (tensor.to_local() for tensor in (param, grad, *state))  # type: ignore[attr-defined]
    row = [param.detach(), grad, *state]
    if all(tensor.is_contiguous() for tensor in row):
        return [tensor.view(-1) for tensor in row]
    if not param.is_contiguous() and param.stride() != torch.empty_like(param, device="meta").stride():
        raise ConfigurationError(
            f"a parameter of shape {tuple(param.shape)} has gaps in memory: make it contiguous"
        )
    if not _lies_like(grad, param):
        grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
    for tensor in state:
        if not _lies_like(tensor, param):
            tensor.data = torch.empty_like(param, dtype=tensor.dtype).copy_(tensor)
    return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in (param.detach(), grad, *state)]


def _lies_like(tensor: Tensor, param: Tensor) -> bool:
    return tensor.stride() == param.stride() or (tensor.is_contiguous() and param.is_contiguous())


def shard_index(param: Tensor) -> int:
    """Return which part of a parameter this process holds: 0 of a plain one, the same for replicas."""
    sharded: Any = param
    index = 0
    for dim, placement in enumerate(getattr(param, "placements", ())):
        rank = sharded.device_mesh.get_local_rank(dim) if placement.is_shard() else 0
        index = index * sharded.device_mesh.size(dim) + rank
    return index
