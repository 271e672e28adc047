"""Facts about a node's tensor: its memory, its order, whether it is a parameter."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from activation_compression.compiled.calls import CASTS, is_view, packet, source_of
from activation_compression.compiled.crossing import Crossing, returned_by

__all__ = [
    "OWN",
    "copied",
    "dtype_of",
    "erase",
    "hint_of",
    "is_further_result",
    "is_of_parameter",
    "memory_of",
    "order_of",
    "root_of",
    "trained",
]

OWN = "activation_compression_own"
"""Key in the meta of a graph's input that is a parameter or a buffer."""


def copied(graph: fx.Graph, node: fx.Node, known: dict[fx.Node, fx.Node]) -> fx.Node:
    """Copy a node of the backward graph, with all nodes it is computed from, into the forward graph."""
    if node not in known:
        for given in node.all_input_nodes:
            copied(graph, given, known)
        known[node] = graph.node_copy(node, lambda given: known[given])
    return known[node]


def erase(node: fx.Node) -> None:
    """Erase a node without users, and the nodes that only it used."""
    given = node.all_input_nodes
    node.graph.erase_node(node)
    for other in given:
        if other.op == "call_function" and not other.users:
            erase(other)


def is_further_result(node: fx.Node) -> bool:
    """Return whether a node is one of several results, but not the first; views do not count."""
    return node.target is operator.getitem and bool(node.args[1] != 0) and not is_view(source_of(node))


def trained(crossing: Crossing) -> set[fx.Node]:
    """Return the nodes that depend on an input whose gradient the backward graph returns."""
    inputs = crossing.forward.find_nodes(op="placeholder")
    slopes = returned_by(crossing.backward)
    dependent = {given for given, slope in zip(inputs, slopes, strict=False) if slope is not None}
    for node in crossing.forward.nodes:
        if any(given in dependent for given in node.all_input_nodes):
            dependent.add(node)
    return dependent


def is_of_parameter(node: fx.Node) -> bool:
    """Return whether a tensor is a parameter or a buffer, or a view or cast of one."""
    while is_view(node) or packet(node.target) in CASTS:
        node = source_of(node)
    return node.op == "placeholder" and bool(node.meta.get(OWN))


def root_of(node: fx.Node) -> fx.Node:
    """Return the whole tensor of which a node is a reshaped view."""
    while is_view(node) and same_count(node, source_of(node)):
        node = source_of(node)
    return node


def same_count(first: fx.Node, second: fx.Node) -> bool:
    """Return whether two tensors have equally many elements in every call."""
    return statically_known_true(first.meta["val"].numel() == second.meta["val"].numel())


def memory_of(node: fx.Node) -> fx.Node:
    """Return the node that made the memory of a tensor."""
    while is_view(node) or (node.target is operator.getitem and is_view(source_of(node))):
        node = source_of(node)
    return node


def order_of(value: Tensor) -> list[int]:
    """Return the axes from the outermost in memory to the innermost."""
    strides = [hint_of(stride) for stride in value.stride()]
    return sorted(range(value.ndim), key=lambda dim: -strides[dim])


def hint_of(size: Any) -> int:
    """Return a length; for a symbol, its value when the graph was made."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return math.inf if hint is None else hint  # type: ignore[return-value]  # infinity compares like an int


def dtype_of(node: fx.Node) -> str:
    """Return the dtype of a tensor, without `torch.`."""
    return str(node.meta["val"].dtype).removeprefix("torch.")
