"""How many calls a device receives, counted on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from finetune_common.compiled import Compiled

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


class Calls(TorchDispatchMode):
    """Count operations, compiled calls as one each; views and empty tensors are free.

    Examples:
        >>> import torch
        >>> x = torch.ones(3)
        >>> with Calls() as calls:
        ...     y = (x.view(-1) + 1) * 2
        >>> calls.names
        ['add', 'mul']
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return function(*args, **(kwargs or {}))

    @property
    def waits(self) -> list[str]:
        """Those that read a value, for which a host waits."""
        return [name for name in self.names if name in ("_local_scalar_dense", "nonzero", "index", "item")]


@contextmanager
def as_on_a_gpu(calls: Callable[[], Calls], *modules: Any) -> Iterator[None]:
    """Let modules choose what they choose on a GPU; compiled functions run as written, and count once.

    Args:
        calls: Returns what counts.
        modules: Those that ask `calls_decide`.
    """

    def one_call(self: Compiled, *args: Any) -> Any:
        calls().names.append("compiled")
        with _disable_current_modes():
            return self.function(*args)

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(patch.object(module, "calls_decide", lambda device: True))
        stack.enter_context(patch.object(Compiled, "usable", True))
        stack.enter_context(patch.object(Compiled, "__call__", one_call))
        yield
