"""Positions that alone have a gradient: of the other positions nothing crosses.

    L = ℓ(h_{b, t(b)} for all b),   ∂L/∂h_{b, s} = 0  for s ≠ t(b)

A classifier reads one token of each sequence. In its last layer, above the attention that mixes tokens,
backward multiplies saved values by gradients that are zero at all other tokens (`zeros`). So the values of
one token suffice. They cross unrounded. Backward repeats them at the others, where they meet zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import fx

from activation_compression.compiled.crossing import Crossing, make
from activation_compression.compiled.tensors import copied
from activation_compression.compiled.zeros import Pick, Zeros, picks, shape_of

__all__ = ["keep_picked"]

aten = torch.ops.aten


def keep_picked(
    crossing: Crossing, gradients: Collection[fx.Node], is_there: Callable[[fx.Node], bool]
) -> dict[fx.Node, fx.Node]:
    """Let only the picked positions of a tensor cross, where backward needs no others.

    Args:
        crossing: The graphs.
        gradients: Backward's nodes that depend on the incoming gradient.
        is_there: Whether a tensor of the forward graph is in memory anyway; a part of it would gain nothing.

    Returns:
        Forward's node of the picked positions → the whole tensor.
    """
    kept: dict[fx.Node, fx.Node] = {}
    for pick in list(picks(crossing, gradients)):
        candidates = [given for given, made in crossing.tensors() if pick.front(given) and not is_there(made)]
        for given in Zeros(crossing.backward, pick, gradients).hidden(candidates):
            made = crossing.saved[given]
            part = _take(crossing, pick, made)
            crossed = crossing.cross(part, given)
            first = next(node for node in crossing.backward.nodes if node.op != "placeholder")
            with crossing.backward.inserting_before(first):
                given.replace_all_uses_with(_repeat(crossing.backward, pick, crossed, given))
            crossing.drop(given)
            kept[part] = made
    return kept


def _take(crossing: Crossing, pick: Pick, made: fx.Node) -> fx.Node:
    """Add the picked positions of a tensor to the forward graph, in memory of their own."""
    graph, whole = crossing.forward, pick.front(made) == len(pick.lead)
    if not pick.indices:
        with graph.inserting_before(made.next):
            if whole:
                part = make(graph, aten.select.int, made, pick.axis, pick.index)
            else:
                part = make(graph, aten.slice.Tensor, made, 0, pick.index, math.prod(pick.lead), pick.length)
            return make(graph, aten.clone.default, part, memory_format=torch.contiguous_format)
    with graph.inserting_before(graph.output_node()):
        rows, positions = (copied(graph, node, crossing.known()) for node in pick.indices)
    with graph.inserting_before(_when_known(graph, made, (rows, positions)).next):
        if whole:
            return make(graph, aten.index.Tensor, made, [rows, positions])
        positions = make(graph, aten.remainder.Scalar, positions, pick.length)
        starts = make(graph, aten.mul.Tensor, rows, pick.length)
        return make(graph, aten.index.Tensor, made, [make(graph, aten.add.Tensor, starts, positions)])


def _when_known(graph: fx.Graph, made: fx.Node, needed: tuple[fx.Node, ...]) -> fx.Node:
    """Return the node after which positions can be taken, early, so that the whole tensor is soon free.

    What the positions are computed from is moved before the tensor, unless it depends on the tensor.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    sources: set[fx.Node] = set()
    waiting = list(needed)
    while waiting:
        node = waiting.pop()
        if node not in sources and order[node] >= order[made]:
            sources.add(node)
            waiting += node.all_input_nodes
    late = sorted(sources, key=order.__getitem__)
    if made in sources:
        return late[-1]
    for node in late:
        made.prepend(node)
    return made


def _repeat(graph: fx.Graph, pick: Pick, part: fx.Node, given: fx.Node) -> fx.Node:
    """Add a tensor that has the picked values at every position to the backward graph."""
    shape = list(shape_of(given))
    axis, lengths = pick.axis, shape
    if pick.front(given) != len(pick.lead):
        axis, lengths = 1, [math.prod(pick.lead[:-1]), pick.length, *shape[1:]]
    repeated = make(graph, aten.expand.default, make(graph, aten.unsqueeze.default, part, axis), lengths)
    copy = make(graph, aten.clone.default, repeated, memory_format=torch.contiguous_format)
    return make(graph, aten.view.default, copy, shape)
