"""Parameters that take a step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from finetune_common.aliases import ParamGroup, StateDict
from finetune_common.optim.rows import shard_index
from finetune_common.optim.run import Row

__all__ = ["Batch", "Turn", "batches_of", "salts"]


@dataclass(frozen=True)
class Batch:
    """Parameters of one group that take a step together.

    Args:
        group: Their parameter group.
        step: The number of this step for them, from 1.
        params: The parameters.
        grads: Their gradients from `.grad`; a DTensor stands for the whole tensor.
        rows: `[param, grad, *state]` of each, flat; of a DTensor this process's part.
        indices: Their positions among all parameters of the optimizer.
    """

    group: ParamGroup
    step: int
    params: list[Tensor]
    grads: list[Tensor]
    rows: list[Row]
    indices: list[int]

    @property
    def kind(self) -> tuple[torch.dtype, torch.dtype, torch.device]:
        """Dtypes and device; rows with the same ones may run in one call."""
        return self.rows[0][0].dtype, self.rows[0][1].dtype, self.rows[0][0].device


class Turn(NamedTuple):
    """A parameter that has a gradient at this step.

    Attributes:
        group: The position of its group.
        place: Its position among all parameters of the optimizer.
        param: The parameter.
        grad: Its gradient.
        state: All of its state.
        tensors: The state and other arguments of the rule, in order.
    """

    group: int
    place: int
    param: Tensor
    grad: Tensor
    state: StateDict
    tensors: list[Tensor]


def batches_of(
    turns: Sequence[Turn], steps: Sequence[int], rows: Sequence[Row], groups: Sequence[ParamGroup]
) -> list[Batch]:
    """Return the turns of one group, step, device and dtype together.

    Args:
        turns: The parameters that take this step.
        steps: The number of this step, for each of them.
        rows: The row of each.
        groups: All groups of the optimizer.
    """
    batches: dict[tuple[object, ...], Batch] = {}
    for turn, step, row in zip(turns, steps, rows, strict=True):
        key = (turn.group, step, turn.param.dtype, turn.grad.dtype, row[0].device)
        batch = batches.get(key)
        if batch is None:
            batch = batches[key] = Batch(groups[turn.group], step, [], [], [], [])
        batch.params.append(turn.param)
        batch.grads.append(turn.grad)
        batch.rows.append(row)
        batch.indices.append(turn.place)
    return list(batches.values())


def salts(batch: Batch) -> Tensor:
    """Return a number for each parameter that chooses its random bits at this step."""
    numbers = [
        hash((batch.step, index, shard_index(param))) % 2**31
        for index, param in zip(batch.indices, batch.params, strict=True)
    ]
    return torch.tensor(numbers, dtype=torch.int32, device=batch.rows[0][0].device)
