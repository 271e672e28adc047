"""Fused attention in a backward graph: its results are recomputed from its q, k and v.

Rounded q and k with the log-sum-exp of the exact ones give probabilities that do not sum to one
(`activation_compression.attention` has the equations). So backward reads results of the same q, k and v.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx
from torch._ops import OpOverload

from activation_compression.compiled.calls import arguments_of, names_of, packet
from activation_compression.compiled.crossing import Crossing, make
from activation_compression.compiled.made_again import copied_back
from activation_compression.compiled.readings import AGAIN
from activation_compression.compiled.tensors import order_of, root_of

__all__ = ["attend_again"]

PREFIX, SUFFIX = "_scaled_dot_product_", "_backward"


def is_attention(node: fx.Node) -> bool:
    """Return whether a node is the backward pass of a fused attention."""
    name = packet(node.target)
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


def attend_again(crossing: Crossing) -> dict[fx.Node, fx.Node]:
    """Repeat fused attentions without dropout in the backward graph, so that their results do not cross.

    Returns:
        Forward's result that crossed → forward's attention, for the statistics.
    """
    gone: dict[fx.Node, fx.Node] = {}
    views = {given: root_of(made) for given, made in crossing.tensors()}
    for node in [n for n in crossing.backward.nodes if is_attention(n)]:
        read = arguments_of(node)
        results = [read[name] for name in ("out", "logsumexp")]
        results = [result for result in results if isinstance(result, fx.Node) and result in crossing.saved]
        if read["dropout_p"] != 0 or len(results) < 2:
            continue
        forward = _forward_of(node)
        with crossing.backward.inserting_before(node):
            again = make(crossing.backward, forward, **_settings(forward, read))
            made = [make_item(crossing.backward, again, number) for number in range(2)]
        roots: dict[fx.Node, fx.Node] = {}
        for result, new in zip(results, made, strict=True):
            result.replace_all_uses_with(new)
            saved = crossing.saved[result]
            gone[saved] = again
            if order_of(new.meta["val"]) == order_of(root_of(saved).meta["val"]):
                roots[root_of(saved)] = new
            crossing.drop(result)
        for given in [given for given, root in views.items() if root in roots and given in crossing.saved]:
            with crossing.backward.inserting_before(node):
                view = copied_back(crossing, crossing.saved[given], dict(roots), given)
            given.replace_all_uses_with(view)  # `just_in_time` moves it before its first use
            crossing.drop(given)
        node.meta[AGAIN] = True
    return gone


def make_item(graph: fx.Graph, node: fx.Node, number: int) -> fx.Node:
    """Add one of several results."""
    item = graph.call_function(operator.getitem, (node, number))
    item.meta["val"] = node.meta["val"][number]
    return item


def _forward_of(node: fx.Node) -> OpOverload:
    return getattr(torch.ops.aten, packet(node.target).removesuffix(SUFFIX)).default


def _settings(forward: OpOverload, given: Mapping[str, object]) -> dict[str, object]:
    """Return the forward operation's arguments: backward's arguments of the same names."""
    names = names_of(forward)
    settings = {name: given[name] for name in names if name in given}
    if "compute_log_sumexp" in names:
        settings["compute_log_sumexp"] = True
    return settings
