"""Results for fake tensors, which have no values, when a model looks for the end of a text."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OneEndEach"]

aten = torch.ops.aten


class OneEndEach(TorchDispatchMode):
    """A context in which a mask over rows and tokens marks one token per row.

    Some heads look for the end of a text by such a mask.

    Examples:
        >>> from torch._subclasses import FakeTensorMode
        >>> with FakeTensorMode(), OneEndEach():
        ...     words = torch.zeros(4, 7, dtype=torch.long)
        ...     torch.zeros(4, 7, 16)[words.eq(1), :].shape
        torch.Size([4, 16])
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten.unique_consecutive.default:
            none = args[0].new_empty(0, dtype=torch.long)
            return args[0].new_empty(1), none, none
        if function is aten.index.Tensor:
            x, (mask, *others) = args
            if mask is not None and mask.dtype == torch.bool and mask.ndim == 2 and not any(others):
                return x.new_empty(mask.shape[0], *x.shape[2:])
        return function(*args, **(kwargs or {}))
