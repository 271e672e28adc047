"""How many calls a device receives, counted on a CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from finetune_common.compiled import Compiled, calls_decide

__all__ = ["Calls", "as_on_a_gpu"]

FREE = frozenset(
    [
        "view",
        "unbind",
        "slice",
        "select",
        "split",
        "detach",
        "alias",
        "expand",
        "unsqueeze",
        "squeeze",
        "t",
        "permute",
        "transpose",
        "as_strided",
        "split_with_sizes",
        "empty",
        "empty_like",
        "lift_fresh",
        "scalar_tensor",
        "_unsafe_view",
        "_record_function_enter_new",
        "_record_function_exit",
    ]
)
"""Operations that launch nothing."""


FROM_NUMBERS = frozenset([torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor])
TO_NUMBERS = frozenset(
    [
        Tensor.item,
        Tensor.tolist,
        Tensor.cpu,
        Tensor.numpy,
        Tensor.__bool__,
        Tensor.__float__,
        Tensor.__int__,
        Tensor.__index__,
    ]
)


class _Host(TorchFunctionMode):
    """Note calls that move numbers between Python and tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.brought: list[str] = []
        self.read: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FROM_NUMBERS and not isinstance(args[0], Tensor):
            self.brought.append(function.__name__)
        elif function in TO_NUMBERS:
            self.read.append(function.__name__)
        return function(*args, **(kwargs or {}))


class Calls(TorchDispatchMode):
    """Count operations, compiled calls as one each; views and empty tensors are free.

    Making a tensor from Python's numbers would be a copy to the device (`from_host`); reading a number makes
    the host wait (`waits`).

    Examples:
        >>> import torch
        >>> x = torch.ones(3)
        >>> with Calls() as calls:
        ...     y = (x.view(-1) + torch.tensor(1)) * 2
        ...     z = float(y.sum())
        >>> calls.names
        ['add', 'mul', 'sum', '_local_scalar_dense']
        >>> calls.from_host
        ['tensor']
        >>> calls.waits
        ['_local_scalar_dense', '__float__']
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._host = _Host()

    def __enter__(self) -> Calls:
        self._host.brought.clear()
        self._host.read.clear()
        self._host.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._host.__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        """Calls that read a value, so that the host waits."""
        waiting = [name for name in self.names if name in ("_local_scalar_dense", "nonzero", "index")]
        return waiting + self._host.read

    @property
    def from_host(self) -> list[str]:
        """Calls that made a tensor from Python's numbers since counting began."""
        return [*self._host.brought]


@contextmanager
def as_on_a_gpu(calls: Callable[[], Calls]) -> Iterator[None]:
    """Make every module that asks `calls_decide` act as on a GPU; compiled functions run as written and count
    once.

    Args:
        calls: Returns the counter.
    """

    def one_call(self: Compiled, *args: Any) -> Any:
        calls().names.append("compiled")
        with _disable_current_modes():
            return self.function(*args)

    asked = [module for module in [*sys.modules.values()] if vars(module).get("calls_decide") is calls_decide]
    with ExitStack() as stack:
        for module in asked:
            stack.enter_context(patch.object(module, "calls_decide", lambda device: True))
        stack.enter_context(patch.object(Compiled, "usable", True))
        stack.enter_context(patch.object(Compiled, "__call__", one_call))
        yield
