"""What a node of a graph calls: the operation, its arguments, and whether it makes a view."""

from __future__ import annotations

from typing import Any, TypeGuard, cast

import torch
from torch import fx
from torch._ops import OpOverload

__all__ = [
    "CASTS",
    "arguments_of",
    "is_operation",
    "is_pointwise",
    "is_view",
    "label",
    "names_of",
    "packet",
    "source_of",
]

CASTS = ("convert_element_type", "_to_copy")

TORCH = ("aten", "prims")
"""torch's namespaces. An operation of another one may have the name of one of torch's, and do anything."""


def is_operation(target: object) -> TypeGuard[OpOverload[..., Any]]:
    """Return whether a target is an operation; otherwise it is a function of Python."""
    return isinstance(target, OpOverload)


def label(target: object) -> str:
    """Return the name of an operation without its overload; empty if it is not one."""
    if not is_operation(target):
        return ""
    return target._opname  # pyright: ignore[reportPrivateUsage]  # its public name has the overload


def packet(target: object) -> str:
    """Return the name of one of torch's operations without its overload; empty if it is not one."""
    return label(target) if getattr(target, "namespace", "") in TORCH else ""


def names_of(target: object) -> list[str]:
    """Return the names of an operation's arguments; none if it is not one."""
    if not is_operation(target):
        return []
    return [a.name for a in target._schema.arguments]  # pyright: ignore[reportPrivateUsage]  # torch's only way


def arguments_of(node: fx.Node) -> dict[str, object]:
    """Return the arguments of a node by name; none if it calls no operation."""
    names = names_of(node.target)
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs} if names else {}


def is_view(node: fx.Node) -> bool:
    """Return whether a node's result lies in the memory of its first argument."""
    target = node.target
    if not is_operation(target) or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if target is torch.ops.aten.view.dtype:
        return False  # the bits of other numbers
    return target.is_view or packet(target) == "_unsafe_view"


def is_pointwise(node: fx.Node) -> bool:
    """Return whether each element of a result depends on elements in its place only; casts count apart."""
    return is_operation(node.target) and torch.Tag.pointwise in node.target.tags


def source_of(view: fx.Node) -> fx.Node:
    """Return the node of which a node is a view, a cast or an item."""
    return cast("fx.Node", view.args[0])
