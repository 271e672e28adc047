"""The graph that backward walks, with what torch's types leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

__all__ = ["Node", "node_of", "setting"]


class Node(Protocol):
    """A node of the graph: `tensor.grad_fn`.

    The operation's settings are attributes such as `_saved_dim` (`setting` reads them), what it saved such as
    `_raw_saved_self`.
    """

    @property
    def metadata(self) -> dict[object, Any]:
        """Notes that live as long as the node."""
        ...

    @property
    def next_functions(self) -> tuple[tuple[Node | None, int], ...]:
        """The node that made each input, and the number of its output."""
        ...

    def name(self) -> str:
        """Return the operation's name, such as "MulBackward0"."""
        ...

    def register_prehook(self, fn: Callable[..., object], /) -> RemovableHandle:
        """Call a function with the gradients that arrive at the node."""
        ...

    def __getattr__(self, name: str) -> Any: ...


def node_of(tensor: Tensor) -> Node | None:
    """Return the node that made a tensor; None where there is none."""
    return cast("Node | None", tensor.grad_fn)


def setting(node: object, name: str) -> Any:
    """Return a setting of an operation, as it was given; None where it was not given, or does not exist.

    Args:
        node: A node of the graph, or the settings under the same names.
        name: Name of the setting, such as "dim".

    Examples:
        >>> import torch
        >>> setting(torch.ones(2, 3, requires_grad=True).log_softmax(-1).grad_fn, "dim")
        -1
    """
    return _signed(getattr(node, f"_saved_{name}", None))


def _signed(value: Any) -> Any:
    """Undo that nodes return negative numbers as unsigned ones."""
    if isinstance(value, tuple):
        return tuple(map(_signed, cast("tuple[Any, ...]", value)))
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value
