"""How many calls a device receives, counted on a CPU."""

from __future__ import annotations

# torch's modes and conversions are typed by half:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as disable_modes  # pyright: ignore[reportPrivateUsage]  # has no public name

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


Function: TypeAlias = Callable[..., object]

FROM_NUMBERS: frozenset[Function] = frozenset(
    [torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.new_tensor]
)
TO_NUMBERS: frozenset[Function] = frozenset(
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


class _NumberMoves(TorchFunctionMode):
    """Note calls that move numbers between Python and tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.to_tensors: list[str] = []
        self.to_python: list[str] = []

    def __torch_function__(
        self,
        func: Function,
        types: Iterable[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func in FROM_NUMBERS and not isinstance(args[0], Tensor):
            self.to_tensors.append(func.__name__)
        elif func in TO_NUMBERS:
            self.to_python.append(func.__name__)
        return func(*args, **(kwargs or {}))


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
        self._moves = _NumberMoves()

    def __enter__(self) -> Calls:
        self._moves.to_tensors.clear()
        self._moves.to_python.clear()
        self._moves.__enter__()
        return super().__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self._moves.__exit__(exc_type, exc_val, exc_tb)

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Iterable[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        """Calls that read a value, so that the host waits."""
        waiting = [name for name in self.names if name in ("_local_scalar_dense", "nonzero", "index")]
        return waiting + self._moves.to_python

    @property
    def from_host(self) -> list[str]:
        """Calls that made a tensor from Python's numbers since counting began."""
        return [*self._moves.to_tensors]


@contextmanager
def as_on_a_gpu(calls: Callable[[], Calls]) -> Generator[None, None, None]:
    """Make modules that ask `calls_decide` act as on a GPU; a compiled function counts as one call.

    Compiled functions run as written meanwhile.

    Args:
        calls: Returns the counter.
    """

    def one_call(self: Compiled, *args: object) -> object:
        calls().names.append("compiled")
        with disable_modes():
            return self.function(*args)

    modules = [*sys.modules.values()]
    asking = [module for module in modules if vars(module).get("calls_decide") is calls_decide]

    def on_a_gpu(device: torch.device) -> bool:
        return True

    with ExitStack() as stack:
        for module in asking:
            stack.enter_context(patch.object(module, "calls_decide", on_a_gpu))
        stack.enter_context(patch.object(Compiled, "usable", True))
        stack.enter_context(patch.object(Compiled, "__call__", one_call))
        yield
