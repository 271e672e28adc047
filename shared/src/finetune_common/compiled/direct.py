"""Compiled code that is entered without torch's checks of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from finetune_common.compiled.function import Compiled, Function

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["Direct", "DirectByShape"]


class Direct:
    """A function of flat tensors of one length, compiled for all lengths and entered without checks.

    A function from `torch.compile` checks every property of every argument at every call. If much memory was
    touched in between, that takes as long as a pass over 50,000 elements. Here only the first call of a
    length is checked, and shows which code torch uses; later calls of that length enter it at once.

    The caller guarantees that only the arguments' length differs between calls: equally many contiguous
    tensors, of the same dtypes and numbers of dimensions, on one CPU, without shared memory.

    Args:
        function: `function(row, others)` of two lists of tensors, those of `row` of one length. It changes
            them in place and returns nothing.
        what: The user's name for it, for a warning; see `Compiled`.
        name: Distinguishes, in torch's logs, objects made from one function.

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
        self._noted = _Noted()
        self._checked = Compiled(function, what, name=name, dynamic=True, backend=self._noted)
        self._known: dict[tuple[int, int], tuple[Function, list[int]]] = {}

    @property
    def usable(self) -> bool:
        """Whether a call would run compiled at this moment."""
        return self._checked.usable

    def __call__(self, row: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        """Run the function, compiled if it is `usable`, which is for the caller to ask."""
        length = row[0].numel()
        key = length, torch.get_num_threads()  # torch compiles for a number of threads
        known = self._known.get(key)
        given: list[Tensor | int] = [*row, *others, length]
        if known is not None:
            code, places = known
            code(*[given[place] for place in places])
            return
        self._noted.take()
        self._checked(list(row), list(others))
        self._remember(key, [*row, *others], length)

    def _remember(self, key: tuple[int, int], tensors: Sequence[Tensor], length: int) -> None:
        """Remember which code torch used for a length, if its arguments can be identified."""
        call = self._noted.take()
        if call is None:
            return
        code, arguments = call
        places = [_place_of(argument, tensors, length) for argument in arguments]
        known_places = [place for place in places if place is not None]
        if len(known_places) == len(arguments) and _apart(tensors):
            self._known[key] = code, known_places


class DirectByShape:
    """A function of tensors that is compiled, and entered without checks for shapes seen before.

    Like `Direct`, for tensors of several recurring shapes. Outside a CPU, or if tensors share memory, each
    call is checked. The caller guarantees the rest: contiguous tensors without gradient history; for each
    shape, tensors always share memory or never do.

    Args:
        function: Changes its tensors in place and returns nothing.
        what: The user's name for it, for a warning; see `Compiled`.
        name: Distinguishes, in torch's logs, objects made from one function.
        options: Of inductor, as for `torch.compile`; none by default.

    Examples:
        >>> def outer(x, y, out):
        ...     out.copy_(x[:, None] * y)
        >>> direct, out = DirectByShape(outer, "a product", "outer"), torch.empty(2, 3)
        >>> direct(torch.ones(2), torch.arange(3.0), out)
        >>> direct(torch.ones(2), torch.arange(1.0, 4.0), out)
        >>> out
        tensor([[1., 2., 3.],
                [1., 2., 3.]])
    """

    MOST = 256
    """How many combinations of shapes are remembered; then all are forgotten."""

    def __init__(
        self, function: Callable[..., None], what: str, name: str, options: dict[str, object] | None = None
    ) -> None:
        self.function, self.options, self._noted = function, options, _Noted()
        self._checked = Compiled(function, what, name=name, backend=self._noted, options=options)
        self._known: dict[Hashable, Callable[[Sequence[Tensor]], object]] = {}

    @property
    def usable(self) -> bool:
        """Whether a call would run compiled at this moment."""
        return self._checked.usable

    def enters(self, *tensors: Tensor) -> bool:
        """Run the function if its code for these shapes is known; return whether it was."""
        known = self._known.get(self._key(tensors))
        if known is None:
            return False
        known(tensors)
        return True

    def __call__(self, *tensors: Tensor) -> None:
        """Run the function, compiled if it is `usable`, which is for the caller to ask."""
        if self.enters(*tensors):
            return
        self._noted.take()
        self._checked(*tensors)
        call = self._noted.take()
        if call is None or any(tensor.device.type != "cpu" for tensor in tensors):
            return
        if entry := _entry(*call, tensors):
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[self._key(tensors)] = entry

    @staticmethod
    def _key(tensors: Sequence[Tensor]) -> Hashable:
        kinds = tuple([(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors])
        return kinds, torch.get_num_threads(), torch.is_grad_enabled()


def _entry(
    code: Function, arguments: Sequence[object], given: Sequence[Tensor]
) -> Callable[[Sequence[Tensor]], object] | None:
    """Return a function that runs code with given tensors; its number arguments follow from their shapes."""
    if not _apart(given):
        return None
    places = [_place_of(argument, given) for argument in arguments]
    if any(place is None and isinstance(a, Tensor) for place, a in zip(places, arguments, strict=True)):
        return None
    pattern = [(place, None if place is not None else a) for place, a in zip(places, arguments, strict=True)]

    def enter(tensors: Sequence[Tensor]) -> object:
        return code(*[number if place is None else tensors[place] for place, number in pattern])

    return enter


def _place_of(argument: object, tensors: Sequence[Tensor], length: int | None = None) -> int | None:
    """Return the place of an argument of compiled code among the tensors and, after them, their length."""
    if not isinstance(argument, Tensor):
        return len(tensors) if length is not None and argument == length else None
    return next((place for place, tensor in enumerate(tensors) if tensor is argument), None)


class _Noted:
    """A backend of `torch.compile`: inductor, with a note of the arguments of each call."""

    def __init__(self) -> None:
        self._call: tuple[Function, tuple[object, ...]] | None = None

    def take(self) -> tuple[Function, tuple[object, ...]] | None:
        """Return the code that ran last and its arguments, and forget them."""
        call, self._call = self._call, None
        return call

    def __call__(
        self, graph: GraphModule, examples: list[Tensor], options: dict[str, object] | None = None
    ) -> Function:
        from torch._dynamo.backends.registry import lookup_backend  # loads the compiler

        inductor: Callable[..., Function] = lookup_backend("inductor")
        code = inductor(graph, examples, config_patches=options)

        def entered(*arguments: object) -> object:
            self._call = code, arguments
            return code(*arguments)

        return entered


def _apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two tensors share storage: torch compiles other code for those that do."""
    return len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)
