"""The graph that backward walks, with what torch's types leave out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

__all__ = ["Node", "node_of"]


class Node(Protocol):
    """A node of the graph: `tensor.grad_fn`.

    The operation's settings are attributes such as `_saved_dim`, what it saved such as `_raw_saved_self`.
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
