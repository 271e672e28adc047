"""Which operation saved a tensor, under which name, and which module called it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import _get_sequence_nr
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from activation_compression.stored import Saved

__all__ = ["CurrentOperation", "calling_module", "made_of_parameter", "producer", "saved_values"]

Node = Any
VIEWS = 3
"""Views between an autograd function of a caller and the function that uses its result."""

LAST = 2**63
"""Above all numbers of nodes but those of leaves."""


class CurrentOperation(TorchFunctionMode):
    """Know the torch function that is running, and what it saved once it has ended.

    Within a torch function a tensor is saved before its node is known. When the function returns, the node is
    the history of what it returned.

    Args:
        ended: Called with the nodes that are new, after each function that saved something.
        before: Called before each function.
    """

    def __init__(self, ended: Callable[[list[Node]], None], before: Callable[[], None]) -> None:
        super().__init__()
        self._ended, self._before = ended, before
        self.function: Callable[..., Any] | None = None
        self.arguments: Sequence[Any] = ()
        self.settings: Mapping[str, Any] = {}
        self.result: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a torch function, known while it runs."""
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or getattr(func, "__name__", "") == "__get__":
            return func(*args, **kwargs)  # what a compiled function saves is exact; a property saves nothing
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

    def _new_nodes(self, result: Any, first: int) -> list[Node]:
        """Return the nodes that a function made; an operation in place leaves them at its arguments."""
        kinds = result if isinstance(result, Tensor) else tree_leaves(result)
        found = new_nodes([kinds] if isinstance(kinds, Tensor) else kinds, first)
        return found or new_nodes(self.tensors(), first)

    @property
    def name(self) -> str | None:
        """The function's name, or None outside of one (a custom autograd function)."""
        return getattr(self.function, "__name__", None)

    @property
    def changes_in_place(self) -> bool:
        """Whether the function may change an argument."""
        name = self.name or ""
        return name.startswith(("__i", "__set")) or (name.endswith("_") and not name.startswith("__"))

    def tensors(self) -> list[Tensor]:
        """Return the tensors it was called with."""
        found = [*self.arguments, *self.settings.values()]
        return [value for value in found if isinstance(value, Tensor) and value.layout == torch.strided]

    def custom_nodes(self) -> list[Node]:
        """Return the nodes of autograd functions of a caller that the arguments come from, views aside."""
        found = [tensor.grad_fn for tensor in self.tensors()]
        for _ in range(VIEWS):
            found = [
                node.next_functions[0][0] if node is not None and node.name() in VIEWS_AND_COPIES else node
                for node in found
            ]
        return [node for node in found if hasattr(node, "_raw_saved_tensors")]

    def argument(self, name: str, position: int, otherwise: Any) -> Any:
        """Return an argument by its name or its place."""
        given = self.arguments[position] if len(self.arguments) > position else otherwise
        return self.settings.get(name, given)

    def cast(self, saved: Saved, storages_of_model: set[int]) -> Tensor | None:
        """Return the view of a frozen weight that autocast copied into another dtype; None if there is none.

        What trains is known by its history. A frozen weight's copy has none, but is the only argument of its
        size: an input without history is saved beside it only by what reads both, as a convolution does.

        Args:
            saved: What is saved, by the function that is running or by another one.
            own: Addresses of the memory of weights.
        """
        tensor = saved.tensor
        if tensor is None or saved.operation != self.name or not self.made(tensor):
            return None
        if not torch.is_autocast_enabled(tensor.device.type):
            return None
        alike = [given for given in self.tensors() if given.numel() == tensor.numel()]
        base = tensor if tensor._base is None else tensor._base
        if (
            len(alike) != 1
            or alike[0].untyped_storage()._cdata not in storages_of_model
            or alike[0].dtype == tensor.dtype
        ):
            return None
        views = [alike[0], *([alike[0].t()] if alike[0].ndim == 2 else [])]
        told = [v for v in views if (v.shape, v.stride()) == (base.shape, base.stride())]
        return told[0].detach() if told else None

    def made(self, tensor: Tensor) -> bool:
        """Return whether the function that is running made a tensor: it is none of the arguments."""
        storage = tensor.untyped_storage()._cdata
        return self.function is not None and all(
            given.untyped_storage()._cdata != storage for given in self.tensors()
        )


def new_nodes(results: Sequence[Any], first: int) -> list[Node]:
    """Return the nodes from number `first` on that tensors come from."""
    nodes: dict[Node, None] = {}
    waiting = [value.grad_fn for value in results if isinstance(value, Tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes and first <= node._sequence_nr() < LAST:
            nodes[node] = None
            waiting += [following for following, _ in node.next_functions]
    return list(nodes)


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved_"))


def saved_values(node: Node) -> Iterator[tuple[Saved, str | int]]:
    """Yield what a node saved through hooks of this package, and its name; a number in a caller's own."""
    for attribute in _names(type(node)):
        values = getattr(node, attribute)
        if isinstance(values, tuple):
            for number, value in enumerate(values):
                if isinstance(saved := value.data, Saved):
                    yield saved, number if attribute == "_raw_saved_tensors" else attribute[11:]
        elif values is not None and isinstance(saved := values.data, Saved):
            yield saved, attribute[11:]


def calling_module(names: Mapping[int, str]) -> str:
    """Return the name of the innermost module whose `forward` is running, found on the call stack.

    Args:
        names: id of a module → its name.
    """
    frame = sys._getframe(1)
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
    node = tensor.grad_fn
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
    """Return whether a tensor is a leaf that trains, or its view, or its copy in another dtype."""
    if tensor.is_leaf:
        return tensor.requires_grad
    node: Any = tensor.grad_fn
    while node is not None and node.name() in VIEWS_AND_COPIES:
        node = node.next_functions[0][0]
    return node is not None and node.name() == "torch::autograd::AccumulateGrad"
