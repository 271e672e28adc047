"""Parameters as flat rows: what the update rules run over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError
from finetune_common.optim.run import Row

__all__ = ["Rows", "flat_row", "shard_index", "write_back"]


class Rows:
    """The rows of parameters; views of what stays where it is are made once."""

    def __init__(self) -> None:
        self._kept: dict[Tensor, Row] = {}

    def row(self, param: Tensor, grad: Tensor, state: Sequence[Tensor]) -> Row:
        """Return the row of a parameter; see `flat_row`."""
        kept = self._kept.get(param, [])
        if len(kept) == 1 + len(state) and type(grad) is Tensor and grad.is_contiguous():
            _check(grad)
            if all(map(_lie_alike, (param, *state), kept)):
                return [kept[0], grad.view(-1), *kept[1:]]
        row = flat_row(param, grad, *state)
        if all(tensor.is_contiguous() for tensor in (param, *state)) and not hasattr(param, "to_local"):
            self._kept[param] = [row[0], *row[2:]]
        return row


def _lie_alike(tensor: Tensor, view: Tensor) -> bool:
    return tensor.data_ptr() == view.data_ptr() and tensor.shape.numel() == len(view)


def _check(grad: Tensor) -> None:
    if grad.is_sparse or grad.is_complex():
        kind = "sparse" if grad.is_sparse else "complex"
        raise ConfigurationError(f"a {kind} gradient is not supported: use a dense real one (sparse=False)")


def flat_row(param: Tensor, grad: Tensor, *rest: Tensor) -> Row:
    """Return this process's part of a parameter, its gradient and its state, each one-dimensional.

    They are views, with two exceptions: the gradient is copied when it lies otherwise in memory than the
    parameter; and a parameter with gaps in memory is copied, so that its row has to be written back.

    Raises:
        ConfigurationError: A sparse or complex gradient.
    """
    _check(grad)
    state = list(rest)
    if hasattr(param, "to_local"):
        parts: Any = (param, grad, *state)
        param, grad, *state = (tensor.to_local() for tensor in parts)
    row = [param.detach(), grad, *state]
    if all(tensor.is_contiguous() for tensor in row):
        return [tensor.view(-1) for tensor in row]
    if not param.is_contiguous() and param.stride() != torch.empty_like(param, device="meta").stride():
        param = param.detach().contiguous()
    if not _lies_like(grad, param):
        grad = torch.empty_like(param, dtype=grad.dtype).copy_(grad)
    for tensor in state:
        if not _lies_like(tensor, param):
            tensor.data = torch.empty_like(param, dtype=tensor.dtype).copy_(tensor)
    return [tensor.as_strided((tensor.numel(),), (1,)) for tensor in (param.detach(), grad, *state)]


def write_back(param: Tensor, row: Row) -> None:
    """Bring a row that is a copy back to where the parameter lies."""
    target: Any = param.to_local() if hasattr(param, "to_local") else param.detach()  # type: ignore[attr-defined]
    if row[0].numel() and row[0].data_ptr() != target.data_ptr():
        target.copy_(row[0].view(target.shape))


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
