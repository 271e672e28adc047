"""The tensors that cross from a forward graph to its backward graph, and ways to change them.

The forward graph returns the user's outputs, then tensors, then sizes. The backward graph takes sizes, then
the same tensors, then gradients. The runtime sets both orders, and identifies each tensor by its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor

__all__ = ["Crossing", "Size", "just_in_time", "make", "returned_by"]

Size = int | fx.Node


def make(graph: fx.Graph, target: Callable[..., object], *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call at the graph's insertion point, with its result for fake tensors."""
    node = graph.call_function(target, args, kwargs)
    known: Any = fx.map_arg((args, kwargs), lambda given: given.meta["val"])
    fake = next(v for v in map(_value, node.all_input_nodes) if isinstance(v, FakeTensor)).fake_mode
    with ExitStack() as stack:
        stack.enter_context(fake)
        if fake.shape_env is not None:
            stack.enter_context(fake.shape_env.suppress_guards())
        node.meta["val"] = target(*known[0], **known[1])
    return node


def _value(node: fx.Node) -> Any:
    return node.meta.get("val")


def returned_by(graph: fx.Graph) -> list[Any]:
    """Return the results of a graph."""
    return list(cast("tuple[Any, ...]", graph.output_node().args[0]))


class Crossing:
    """A pair of graphs.

    Args:
        forward: From the partitioner.
        backward: From the partitioner.
        outputs: How many of the forward graph's outputs are the user's.

    Attributes:
        saved: Input of the backward graph → result of the forward graph for it.
    """

    def __init__(self, forward: fx.GraphModule, backward: fx.GraphModule, outputs: int) -> None:
        self.forward, self.backward, self.outputs = forward.graph, backward.graph, outputs
        returned = returned_by(forward.graph)
        self._symbols = [n for n in returned[outputs:] if isinstance(_value(n), torch.SymInt)]
        tensors = [n for n in returned[outputs:] if n not in self._symbols]
        self._placed = list(backward.graph.find_nodes(op="placeholder"))
        given = self._placed[len(self._symbols) :]
        self.saved: dict[fx.Node, fx.Node] = dict(zip(given, tensors, strict=False))
        self._numbers = count()  # an input with another node's name would hide that node
        self._sizes = dict(zip(self._placed, self._symbols, strict=False))

    def tensors(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Yield (backward's input, forward's output) of each tensor."""
        for given, made in list(self.saved.items()):
            if isinstance(_value(made), Tensor):
                yield given, made

    def known(self) -> dict[fx.Node, fx.Node]:
        """Return input of the backward graph → its node in the forward graph, including sizes."""
        return self.saved | self._sizes

    def cross(self, made: fx.Node, beside: fx.Node) -> fx.Node:
        """Let another tensor of the forward graph cross, next to a given one; return the new input."""
        with self.backward.inserting_before(beside):
            given = self.backward.placeholder(f"packed_{next(self._numbers)}")
        given.meta["val"] = made.meta["val"]
        if beside.meta.get("saved_tensor_with_no_vc_check"):
            made.meta["saved_tensor_with_no_vc_check"] = True
        entries = list(self.saved.items())
        place = next((i for i, (other, _) in enumerate(entries) if other is beside), len(entries))
        self.saved = dict([*entries[:place], (given, made), *entries[place:]])
        return given

    def drop(self, given: fx.Node) -> None:
        """Stop a tensor from crossing; the backward graph no longer uses it."""
        del self.saved[given]
        self.backward.erase_node(given)

    def size(self, made: fx.Node, dim: int) -> Size:
        """Return a length of a tensor of the forward graph, in the backward graph."""
        length = _value(made).shape[dim]
        if isinstance(length, int):
            return length
        if (given := self._known_symbol(length)) is not None:
            return given
        with self.forward.inserting_before(self.forward.output_node()):
            symbol = self.forward.call_function(torch.ops.aten.sym_size.int, (made, dim))
        symbol.meta["val"] = length
        return self.symbol(symbol)

    def symbol(self, made: fx.Node) -> fx.Node:
        """Return a number of the forward graph, in the backward graph."""
        if (given := self._known_symbol(_value(made))) is not None:
            return given
        first = next(n for n in self.backward.nodes if n not in self._sizes)
        with self.backward.inserting_before(first):
            given = self.backward.placeholder(f"length_{next(self._numbers)}")
        given.meta["val"] = _value(made)
        self._symbols.append(made)
        self._sizes[given] = made
        return given

    def _known_symbol(self, number: Any) -> fx.Node | None:
        for given, symbol in self._sizes.items():
            if symbol.meta["val"].node.expr == number.node.expr:
                return given
        return None

    def row(self, made: fx.Node, after: fx.Node, dim: int) -> tuple[Size, Size]:
        """Return a length of a tensor, in the forward graph next to a node, and in the backward graph."""
        length = _value(made).shape[dim]
        if isinstance(length, int):
            return length, length
        with self.forward.inserting_after(after):
            symbol = self.forward.call_function(torch.ops.aten.sym_size.int, (made, dim))
        symbol.meta["val"] = length
        return symbol, self.size(made, dim)

    def finish(self) -> None:
        """Make the forward graph return the tensors that cross now."""
        output = self.forward.output_node()
        returned = returned_by(self.forward)[: self.outputs]
        crossing = [*self.saved.values(), *self._symbols]
        output.args = ((*returned, *crossing),)
        if "desc" in output.meta:  # torch drops it if a checkpointed region draws random numbers
            output.meta["desc"] = [
                *output.meta["desc"][: self.outputs],
                *_descriptions(list(self.saved.values())),
                *_descriptions(self._symbols, len(self.saved)),
            ]
        output.meta["output_stack_traces"] = [n and n.meta.get("stack_trace") for n in output.args[0]]


def _descriptions(nodes: list[fx.Node], first: int = 0) -> list[object]:
    from torch._functorch._aot_autograd import descriptors

    unchecked = getattr(
        descriptors, "SavedForBackwardsNoVcCheckAOTOutput", descriptors.SavedForBackwardsAOTOutput
    )
    return [
        (
            unchecked
            if n.meta.get("saved_tensor_with_no_vc_check")
            else descriptors.SavedForBackwardsAOTOutput
        )(i)
        for i, n in enumerate(nodes, first)
    ]


def just_in_time(graph: fx.Graph, late: set[fx.Node]) -> None:
    """Order a graph anew, so that everything is computed just before its first use.

    What changes a tensor in place, or anything outside, stays even if nothing uses its result.

    Args:
        graph: The graph.
        late: Nodes that keep their order; others come when these need them.
    """
    order: list[fx.Node] = []
    placed: set[fx.Node] = set()
    nodes: list[fx.Node] = list(graph.nodes)
    for node in nodes:
        if node.op == "placeholder":
            placed.add(node)
    for root in (n for n in nodes if n in late or n.is_impure(impure_random=False)):
        waiting = [root]
        while waiting:
            node = waiting[-1]
            missing = [n for n in node.all_input_nodes if n not in placed]
            if missing and node not in placed:
                waiting += missing[::-1]
                continue
            waiting.pop()
            if node not in placed:
                placed.add(node)
                order.append(node)
    last = next((n for n in reversed(nodes) if n.op == "placeholder"), None)
    for node in order:
        if node.op != "output":
            root = graph._root  # pyright: ignore[reportPrivateUsage]  # before the first node
            (root if last is None else last).append(node)
            last = node
    for node in reversed(nodes):
        if node not in placed and node.op != "output" and not node.users:
            graph.erase_node(node)
