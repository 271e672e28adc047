"""Which operation saved a tensor, under which name, and which module called the operation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr  # pyright: ignore[reportPrivateUsage]  # numbers new nodes
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from activation_compression.blocks import has_memory, storage_id
from activation_compression.nodes import Node, node_of
from activation_compression.stored import Saved

__all__ = [
    "CurrentOperation",
    "calling_module",
    "is_custom",
    "made_of_parameter",
    "producer",
    "saved_contents",
    "saved_values",
]

VIEWS = 3
"""Most views between a caller's own autograd function and the function that uses its result."""

LAST = 2**63
"""Above the sequence numbers of all nodes but leaves."""


class CurrentOperation(TorchFunctionMode):
    """Tracks the torch function that is running, and what it saved once it has ended.

    Within a torch function a tensor is saved before its node is known. When the function returns, its result
    leads to the node.

    Args:
        ended: Called with the new nodes, after each function that made some.
        before: Called before each function.
    """

    def __init__(self, ended: Callable[[list[Node]], None], before: Callable[[], None]) -> None:
        super().__init__()
        self._ended, self._before = ended, before
        self.function: Callable[..., object] | None = None
        self.arguments: Sequence[object] = ()
        self.settings: Mapping[str, object] = {}
        self.result: object = None

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run a torch function and track it."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)  # a compiled function's tensors are exact; a property saves nothing
        self.function, self.arguments, self.settings = func, args, kwargs
        self._before()
        first = _get_sequence_nr()
        try:
            self.result = result = func(*args, **kwargs)
            if _get_sequence_nr() > first:
                self._ended(self._new_nodes(result, first))
            return result
        finally:
            self.function, self.arguments, self.settings, self.result = None, (), {}, None

    def _new_nodes(self, result: object, first: int) -> list[Node]:
        """Return the nodes that a function made; after an in-place operation its arguments lead to them."""
        results = [result] if isinstance(result, Tensor) else tree_leaves(result)
        return new_nodes(results, first) or new_nodes(self.tensors(), first)

    @property
    def name(self) -> str | None:
        """The function's name; None outside of functions, as in a custom autograd function."""
        return getattr(self.function, "__name__", None)

    def changing(self) -> list[Tensor]:
        """Return the tensors that the function may change: its first argument, by keyword any of them."""
        name = self.name or ""
        if name.startswith(("__i", "__set")) or (name.endswith("_") and not name.startswith("__")):
            return _with_memory(self.arguments[:1] or self.settings.values())
        return []

    def tensors(self) -> list[Tensor]:
        """Return the tensors among the arguments that have memory."""
        return _with_memory([*self.arguments, *self.settings.values()])

    @property
    def reads_parameters(self) -> bool:
        """Whether an argument is a parameter, or a view of one."""
        return any(isinstance(t, nn.Parameter) or isinstance(t._base, nn.Parameter) for t in self.tensors())

    def custom_nodes(self) -> list[Node]:
        """Return the nodes of callers' own autograd functions that made the arguments, also behind views."""
        nodes = [node_of(tensor) for tensor in self.tensors()]
        for _ in range(VIEWS):
            nodes = [
                node.next_functions[0][0] if node is not None and node.name() in VIEWS_AND_COPIES else node
                for node in nodes
            ]
        return [node for node in nodes if node is not None and is_custom(node)]

    def argument(self, name: str, position: int, otherwise: Any) -> Any:
        """Return an argument by its name or its position."""
        value = self.arguments[position] if len(self.arguments) > position else otherwise
        return self.settings.get(name, value)

    def cast(self, saved: Saved, storages_of_model: set[int]) -> Tensor | None:
        """Return the view of a frozen weight that autocast copied into another dtype; None if there is none.

        The copy of a weight that trains has gradient history. That of a frozen weight has none, but it is the
        only argument of its size: only functions that read both, such as a convolution, save an input
        without history beside it.

        Args:
            saved: A saved tensor, of the function that is running or of another one.
            storages_of_model: `storage_id` of parameters and buffers.
        """
        tensor = saved.tensor
        if tensor is None or saved.operation != self.name or not self.made(tensor):
            return None
        if not torch.is_autocast_enabled(tensor.device.type):
            return None
        candidates = [argument for argument in self.tensors() if argument.numel() == tensor.numel()]
        base = tensor if tensor._base is None else tensor._base
        if len(candidates) != 1:
            return None
        [weight] = candidates
        if storage_id(weight) not in storages_of_model or weight.dtype == tensor.dtype:
            return None
        views = [weight, *([weight.t()] if weight.ndim == 2 else [])]
        matching = [v for v in views if (v.shape, v.stride()) == (base.shape, base.stride())]
        return matching[0].detach() if matching else None

    def made(self, tensor: Tensor) -> bool:
        """Return whether the function that is running made a tensor: it is none of the arguments."""
        storage = storage_id(tensor)
        return self.function is not None and all(
            storage_id(argument) != storage for argument in self.tensors()
        )


def _with_memory(values: Iterable[object]) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor) and has_memory(value)]


def new_nodes(results: Sequence[object], first: int) -> list[Node]:
    """Return the nodes behind tensors whose sequence numbers are `first` or higher."""
    nodes: dict[Node, None] = {}
    waiting = [node_of(value) for value in results if isinstance(value, Tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes and first <= node._sequence_nr() < LAST:
            nodes[node] = None
            waiting += [following for following, _ in node.next_functions]
    return list(nodes)


def is_custom(node: Node) -> bool:
    """Return whether a node is that of a caller's own autograd function, written in Python."""
    return hasattr(node, "_raw_saved_tensors")


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def saved_contents(node: Node) -> Iterator[tuple[str | int, object]]:
    """Yield the name of each value that a node saved, and what hooks made of it.

    In a caller's own autograd function the name is a number.
    """
    for attribute in _names(type(node)):
        values: Any = getattr(node, attribute)
        name = attribute.removeprefix("_raw_saved_")
        if isinstance(values, tuple):
            for number, value in enumerate(cast("tuple[Any, ...]", values)):
                yield number if name == "tensors" else name, value.data
        elif values is not None:
            yield name, values.data


def saved_values(node: Node) -> Iterator[tuple[Saved, str | int]]:
    """Yield what a node saved through hooks of this package, and its name there."""
    for name, content in saved_contents(node):
        if isinstance(content, Saved):
            yield content, name


def calling_module(names: Mapping[int, str]) -> str:
    """Return the name of the innermost module whose `forward` is running, from the call stack.

    Args:
        names: id of a module → its name.
    """
    frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # the only way
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and code.co_varnames[:1] == ("self",):
            name = names.get(id(frame.f_locals["self"]))
            if name is not None:
                return name
        frame = frame.f_back
    return ""


def producer(tensor: Tensor) -> str:
    """Return the name of the operation that made a tensor."""
    node = node_of(tensor)
    return "input" if node is None else node.name().rstrip("0123456789").removesuffix("Backward")


VIEWS_AND_COPIES = frozenset(
    f"{name}Backward0"
    for name in [
        "T",
        "Transpose",
        "Permute",
        "View",
        "ReshapeAlias",
        "UnsafeView",
        "Expand",
        "ToCopy",
        "Clone",
    ]
)


def made_of_parameter(tensor: Tensor) -> bool:
    """Return whether a tensor is a leaf that trains, a view of one, or a copy of one in another dtype."""
    if tensor.is_leaf:
        return tensor.requires_grad
    node = node_of(tensor)
    while node is not None and node.name() in VIEWS_AND_COPIES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"
