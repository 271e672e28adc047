"""Compiled code that is entered without torch's checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from finetune_common.compiled.function import Compiled

__all__ = ["Direct"]


class Direct:
    """A function of flat tensors of one length, compiled for all lengths and entered without checks.

    A function that `torch.compile` made checks every property of every argument at every call. Where much
    memory was touched in between that takes as long as a pass over 50,000 elements. Here the first call of a
    length is checked, and tells which code torch takes for it; later calls of that length enter it at once.

    The caller vouches that arguments differ from call to call in nothing but their length: as many tensors,
    contiguous, of the same dtypes and numbers of dimensions, on one CPU, apart from each other in memory.

    Args:
        function: `function(row, others)` of two lists of tensors, those of `row` of one length. It changes
            them in place and returns nothing.
        what: What the user calls it, for a warning; see `Compiled`.
        name: Tells apart, in torch's logs, what is made of one function.

    Examples:
        >>> def scale(row, others):
        ...     row[0].mul_(others[0])
        >>> direct = Direct(scale, "scaling", "scale")
        >>> x, double = torch.ones(3), torch.tensor(2.0)
        >>> direct([x], [double]), direct([x], [double])
        (None, None)
        >>> x
        tensor([4., 4., 4.])
    """

    def __init__(self, function: Callable[..., None], what: str, name: str) -> None:
        self._checked = Compiled(function, what, name=name, dynamic=True, backend=self._compile)
        self._entered: tuple[Callable[..., Any], tuple[Any, ...]] | None = None
        self._known: dict[tuple[int, int], tuple[Callable[..., Any], list[int]]] = {}

    @property
    def usable(self) -> bool:
        """Whether a call would run compiled at this moment."""
        return self._checked.usable

    def __call__(self, row: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Run the function, compiled if it is `usable`, which is for the caller to ask."""
        length = row[0].numel()
        key = length, torch.get_num_threads()  # torch's code is made for a number of threads
        known = self._known.get(key)
        given: list[Any] = [*row, *others, length]
        if known is not None:
            code, places = known
            code(*[given[place] for place in places])
            return
        self._entered = None
        self._checked(list(row), list(others))
        self._remember(key, given)

    def _remember(self, key: tuple[int, int], given: Sequence[Any]) -> None:
        """Keep which code torch took for a length, where the places of its arguments are plain."""
        if self._entered is None:
            return
        code, arguments = self._entered
        places = [place for argument in arguments if (place := _place(argument, given)) is not None]
        if len(places) == len(arguments) and _apart(given[:-1]):
            self._known[key] = code, places
        self._entered = None

    def _compile(self, graph: Any, examples: Any) -> Callable[..., Any]:
        """A backend of `torch.compile`: inductor, which notes what it is called with."""
        from torch._dynamo.backends.registry import lookup_backend  # loads the compiler

        code = lookup_backend("inductor")(graph, examples)

        def entered(*arguments: Any) -> Any:
            self._entered = code, arguments
            return code(*arguments)

        return entered


def _place(argument: Any, given: Sequence[Any]) -> int | None:
    """Return which of the given things an argument of compiled code is."""
    if isinstance(argument, Tensor):
        return next((n for n, other in enumerate(given) if other is argument), None)
    return len(given) - 1 if argument == given[-1] else None


def _apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two tensors share storage: for those that do torch makes other code."""
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
