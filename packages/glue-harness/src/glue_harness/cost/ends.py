"""Results for fake tensors, which have no values, when a model reads values of a batch of full rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary
from transformers import masking_utils

__all__ = ["FullRows", "full_rows"]

aten = torch.ops.aten


class FullRows(TorchDispatchMode):
    """A context in which every token of a batch counts, and the last one of each row is its end.

    A mask over rows and tokens that is used as an index marks one token per row: some heads look for the end
    of a text by it. Whether all of such a mask is set is answered by yes: attention then needs no mask.
    Whether a number that was drawn is small enough to skip a layer (LayerDrop) is answered by no: memory has
    to suffice for all of them.

    Examples:
        >>> from torch._subclasses import FakeTensorMode
        >>> with FakeTensorMode(), FullRows():
        ...     words = torch.zeros(4, 7, dtype=torch.long)
        ...     torch.zeros(4, 7, 16)[words.eq(1), :].shape, bool(torch.ones(4, 7).all())
        (torch.Size([4, 16]), True)
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn, self._answers = WeakIdKeyDictionary(), WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten.unique_consecutive.default:
            none = args[0].new_empty(0, dtype=torch.long)
            return args[0].new_empty(1), none, none
        if function is aten.index.Tensor:
            x, (mask, *others) = args
            if mask is not None and mask.dtype == torch.bool and mask.ndim == 2 and not any(others):
                return x.new_empty(mask.shape[0], *x.shape[2:])
        if function is aten._local_scalar_dense.default and args[0] in self._answers:
            return self._answers[args[0]]
        result = function(*args, **(kwargs or {}))
        if function is aten.rand.default and result.ndim == 0:
            self._drawn[result] = True
        if function is aten.all.default and args[0].ndim == 2:
            self._answers[result] = True
        if function in (aten.lt.Scalar, aten.le.Scalar) and args[0] in self._drawn:
            self._answers[result] = False
        return result


@contextmanager
def full_rows() -> Iterator[None]:
    """Within this context transformers decides about masks of fake tensors as about those of full rows.

    Otherwise it takes fake tensors for those of a compiler, and makes every mask. Nor does torch ask weights
    that it draws whether they lie within bounds.
    """
    with (
        patch.object(masking_utils, "is_tracing", _is_no_compiler),
        patch.object(masking_utils, "fast_all", torch.all),
        patch.object(masking_utils, "find_packed_sequence_indices", _are_not_packed),
        patch.object(torch.nn.init, "_no_grad_trunc_normal_", _as_drawn),
        FullRows(),
    ):
        yield


def _is_no_compiler(tensor: Tensor | None = None) -> bool:
    return False


def _are_not_packed(position_ids: Tensor) -> None:
    """Each row is one text."""


def _as_drawn(tensor: Tensor, *bounds: object, **generator: object) -> Tensor:
    return tensor
