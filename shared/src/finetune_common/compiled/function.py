"""Compile a function, or run it as written and say why."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import count
from types import FunctionType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

__all__ = ["Compiled", "Function", "calls_decide"]

Function: TypeAlias = Callable[..., Any]
"""A function of tensors; its caller knows its arguments and its result."""


class Compiled:
    """A function of tensors that runs compiled if that works and pays, else as written.

    It runs as written

    - on fewer than `pays_from` elements, and while another compiler traces it;
    - inside a `TorchDispatchMode` (fake tensors, torch's FLOP counter): torch compiles nothing there, and
      later gives up on a function that was called there;
    - after `torch.compile` failed on it; one warning gives the reason. A missing compiler affects all
      functions of the process, and is reported once.

    Compiled code runs outside autocast. Each object has its own code object, since torch counts
    recompilations per code object.

    Args:
        function: The function. It may change its tensors in place; compilation comes before the first change.
        what: The user's name for it, for the warning: "gradient noise".
        name: Distinguishes, in torch's logs, objects made from one function; by default the function's name.
        pays_from: Elements of the largest tensor argument from which a compiled call pays for itself.
        dynamic: As for `torch.compile`: None makes sizes symbols when they change, True at once.
        backend: As for `torch.compile`.
        otherwise: The function to run when not compiled; `function` by default.
        options: As for `torch.compile`; none by default.

    Examples:
        >>> def double(x):
        ...     x.mul_(2)
        >>> x = torch.ones(3)
        >>> Compiled(double, "doubling", pays_from=1_000)(x)
        >>> x
        tensor([2., 2., 2.])
    """

    def __init__(
        self,
        function: Function,
        what: str,
        *,
        name: str = "",
        pays_from: int = 0,
        dynamic: bool | None = None,
        backend: str | Function = "inductor",
        otherwise: Function | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.function, self.what, self.name = function, what, name or function.__name__
        self.options = options
        self.pays_from, self.dynamic, self.backend = pays_from, dynamic, backend
        self.otherwise = otherwise or function
        self._failed = False

    @property
    def usable(self) -> bool:
        """Whether a large call would run compiled at this moment."""
        return not (
            self._failed or _no_compiler or torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
        )

    def __call__(self, *args: object) -> Any:
        """Run the function, compiled or as written."""
        if not self.usable or (self.pays_from and _largest(args) < self.pays_from):
            return self.otherwise(*args)
        try:
            if not any(map(torch.is_autocast_enabled, DEVICES)):
                return self._compiled(*args)
            with _without_autocast():
                return self._compiled(*args)
        except Exception as error:
            if not _is_about_compiling(error):
                raise
            self._give_up(error)
        return self.otherwise(*args)

    @cached_property
    def _compiled(self) -> Function:
        plain = cast(FunctionType, self.function)
        name = f"{self.name}_{next(_serial)}"
        function = FunctionType(
            plain.__code__.replace(co_name=name),
            plain.__globals__,
            name,
            plain.__defaults__,
            plain.__closure__,
        )
        function.__kwdefaults__ = plain.__kwdefaults__
        return torch.compile(  # pyright: ignore[reportUnknownMemberType]  # its arguments have no types
            function, dynamic=self.dynamic, fullgraph=True, backend=self.backend, options=self.options
        )

    def _give_up(self, error: BaseException) -> None:
        global _no_compiler
        self._failed = True
        missing = _missing_compiler(error)
        _no_compiler |= missing is not None
        reason = missing or f"torch could not compile it ({_described(error)})"
        if (self.what, reason) not in _warned:
            _warned.add((self.what, reason))
            message = f"{self.what} runs uncompiled, several times slower: {reason}"
            warnings.warn(message, RuntimeWarning, stacklevel=3)


def calls_decide(device: torch.device) -> bool:
    """Whether a call costs more than the memory traffic of most tensors: true except on a CPU."""
    return device.type != "cpu"


DEVICES = ("cpu", "cuda")
"""Devices on which autocast may be on."""

_serial = count()
_no_compiler = False
_warned: set[tuple[str, str]] = set()

_MISSING = (
    "InvalidCxxCompiler",
    "TritonMissing",
    "Cannot find a working triton",
    "Failed to find C compiler",
    "Python.h",
)
"""Errors of torch and triton if a compiler or a header is missing."""


def _missing_compiler(error: BaseException) -> str | None:
    for cause in _causes(error):
        if any(sign in f"{type(cause).__name__}: {cause}" for sign in _MISSING):
            return (
                f"no working compiler was found ({type(cause).__name__}); install a C++ compiler and "
                "Python's headers (CPU) or triton (CUDA)"
            )
    return None


def _is_about_compiling(error: BaseException) -> bool:
    """Whether the error comes from compiling; a faulty function will raise again when run as written."""
    compilers = ("torch._dynamo", "torch._inductor", "torch._functorch", "triton")
    if _missing_compiler(error) or "torch.compile" in str(error):
        return True
    return any(type(cause).__module__.startswith(compilers) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _described(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _largest(args: tuple[object, ...]) -> int:
    return max((arg.numel() for arg in args if isinstance(arg, Tensor)), default=0)


@contextmanager
def _without_autocast() -> Generator[None, None, None]:
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
