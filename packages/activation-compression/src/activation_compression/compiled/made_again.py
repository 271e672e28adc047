"""Values that need not cross, since a backward graph can compute them from available ones.

| value | made of |
| --- | --- |
| rows of an embedding, their sums | the parameter and the integers |
| integers made of integers, as positions | those that the model was given, or lengths alone |
| one of two numbers, as a mask that is added | its condition, which takes one bit |
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from activation_compression.compiled.calls import CASTS, is_operation, is_pointwise, is_view, packet
from activation_compression.compiled.crossing import Crossing
from activation_compression.compiled.tensors import hint_of, is_of_parameter, root_of

__all__ = ["copied_back", "make_again"]

DEEPEST = 12
"""Longest chain of nodes between a value and parameters."""
GATHERING = ("embedding", "index_select")


def make_again(crossing: Crossing, least: int, derive: bool) -> None:
    """Stop values from crossing if the backward graph can compute them from available ones.

    Args:
        crossing: The graphs.
        least: Values with fewer elements cross unchanged.
        derive: Whether computations may run again.
    """
    for given, made in list(crossing.tensors()):
        if made.op == "placeholder" or hint_of(made.meta["val"].numel()) < least:
            continue
        if is_choice(root_of(made)) or (derive and _follows_from_parameters(made, DEEPEST)):
            with crossing.backward.inserting_before(_first_call(crossing)):
                again = copied_back(crossing, made, {}, given)
            given.replace_all_uses_with(again)
            crossing.drop(given)


def is_choice(node: fx.Node) -> bool:
    """Return whether a condition of equal size chooses each element of a tensor from two numbers."""
    if packet(node.target) != "where" or len(node.args) != 3:
        return False
    condition, *ends = node.args
    if any(isinstance(end, fx.Node) and end.all_input_nodes for end in ends):
        return False
    if any(isinstance(end, fx.Node) and end.meta["val"].numel() != 1 for end in ends):
        return False
    return isinstance(condition, fx.Node) and condition.op == "call_function"


def _follows_from_parameters(node: fx.Node, deepest: int) -> bool:
    """Return whether a tensor is made by cheap operations from parameters' rows, or from integers."""
    if node.op == "placeholder":
        value = node.meta["val"]
        return is_of_parameter(node) or not isinstance(value, Tensor) or not value.is_floating_point()
    target = node.target
    if deepest == 0 or node.op != "call_function" or not is_operation(target):
        return False
    name = packet(target)
    if torch.Tag.nondeterministic_seeded in target.tags:
        return False
    cheap = is_pointwise(node) or is_view(node) or name in (*GATHERING, *CASTS)
    whole = isinstance(node.meta["val"], Tensor) and not node.meta["val"].is_floating_point()
    made_of_nothing = not node.all_input_nodes
    return (cheap or whole or made_of_nothing) and all(
        _follows_from_parameters(given, deepest - 1) for given in node.all_input_nodes
    )


def copied_back(crossing: Crossing, node: fx.Node, known: dict[fx.Node, fx.Node], beside: fx.Node) -> fx.Node:
    """Copy a node of the forward graph, and its sources, to the backward graph's insertion point.

    Args:
        crossing: The graphs.
        node: A node of the forward graph.
        known: Nodes of the forward graph → their nodes in the backward graph.
        beside: An input of the backward graph; new ones are added next to it.
    """
    if node in known:
        return known[node]
    value: Tensor | torch.SymInt = node.meta["val"]
    crossed = next((given for given, made in crossing.known().items() if made is node), None)
    if crossed is not None and crossed is not beside:
        known[node] = crossed
    elif isinstance(value, torch.SymInt):
        known[node] = crossing.symbol(node)
    elif node.op == "placeholder" or value.dtype == torch.bool:
        known[node] = crossing.cross(node, beside)
    else:
        for given in node.all_input_nodes:
            copied_back(crossing, given, known, beside)
        known[node] = crossing.backward.node_copy(node, lambda given: known[given])
    return known[node]


def _first_call(crossing: Crossing) -> fx.Node:
    return next(node for node in crossing.backward.nodes if node.op != "placeholder")
