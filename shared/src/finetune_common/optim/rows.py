"""Parameters as flat rows, on which the update rules run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune_common.aliases import is_sharded
from finetune_common.errors import ConfigurationError
from finetune_common.optim.run import Row

__all__ = ["Rows", "flat_row", "shard_index"]


class Rows:
    """The rows of parameters; views of tensors that do not move are made once."""

    def __init__(self) -> None:
        self._views: dict[Tensor, tuple[Row, list[int]]] = {}
        self.copies: list[tuple[Tensor, Row]] = []

    def row(self, param: Tensor, grad: Tensor, state: Sequence[Tensor]) -> Row:
        """Return the row of a parameter; see `flat_row`."""
        known = self._views.get(param)
        if known is not None and type(grad) is Tensor and not grad.is_sparse and grad.is_contiguous():
            views, addresses = known
            unmoved = addresses == [tensor.data_ptr() for tensor in (param, *state)]
            if unmoved and param.numel() == views[0].numel() and not grad.is_complex():
                return [views[0], grad.view(-1), *views[1:]]
        row = flat_row(param, grad, *state)
        part = param.to_local() if is_sharded(param) else param
        if part is param and all(tensor.is_contiguous() for tensor in (param, *state)):
            self._views[param] = [row[0], *row[2:]], [tensor.data_ptr() for tensor in (param, *state)]
        elif row[0].numel() and row[0].data_ptr() != part.data_ptr():
            self.copies.append((part.detach(), row))
        return row

    def write_back(self) -> None:
        """Write rows that are copies back into their parameters."""
        for part, row in self.copies:
            part.copy_(row[0].view(part.shape))
        self.copies.clear()


def _check(grad: Tensor) -> None:
    if grad.is_sparse or grad.is_complex():
        kind = "sparse" if grad.is_sparse else "complex"
        raise ConfigurationError(f"a {kind} gradient is not supported: use a dense real one (sparse=False)")


def flat_row(param: Tensor, grad: Tensor, *rest: Tensor) -> Row:
    """Return this process's part of a parameter, its gradient and its state, each one-dimensional.

    They are views, with two exceptions: a gradient with another memory layout than the parameter is copied; a
    parameter with gaps in memory is copied too, so that its row must be written back.

    Raises:
        ConfigurationError: A sparse or complex gradient.
    """
    _check(grad)
    param, grad, *state = (
        tensor.to_local() if is_sharded(tensor) else tensor for tensor in (param, grad, *rest)
    )
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


def _lies_like(tensor: Tensor, param: Tensor) -> bool:
    return tensor.stride() == param.stride() or (tensor.is_contiguous() and param.is_contiguous())


def shard_index(param: Tensor) -> int:
    """Return the number of this process's part of a parameter: 0 if not sharded, equal for replicas."""
    if not is_sharded(param):
        return 0
    index, mesh = 0, param.device_mesh
    for dim, placement in enumerate(param.placements):
        rank = mesh.get_local_rank(dim) if placement.is_shard() else 0
        index = index * mesh.size(dim) + rank
    return index
