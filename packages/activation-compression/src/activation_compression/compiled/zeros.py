"""Gradients of a backward graph that are zero at all positions of an axis but one.

A loss that reads one token of each sequence gives a gradient to no other: torch puts it among zeros. They
stay zeros in products with anything, in sums of such gradients, and in what works position by position.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, fx

from activation_compression.compiled.calls import CASTS, arguments_of, is_pointwise, packet
from activation_compression.compiled.crossing import Crossing

__all__ = ["Pick", "Zeros", "picks", "shape_of"]

FEWEST = 32
"""Fewest positions from which one is picked. One in 32 bits then takes no more than all in one bit."""
RESHAPES = ("view", "_unsafe_view", "unsqueeze", "squeeze", "alias", "detach")
"""Operations that keep the order of elements."""
REDUCTIONS = ("sum", "mean", "amax")


@dataclass(frozen=True)
class Pick:
    """The positions of an axis that alone have a gradient: one for each element of the axes before.

    Attributes:
        gradient: Backward's gradient that is zero elsewhere.
        lead: The lengths of all axes up to this one.
        index: The position.
        indices: Two nodes if each row has a position of its own: the rows' numbers, and the positions.
    """

    gradient: fx.Node
    lead: tuple[int, ...]
    index: int = 0
    indices: tuple[fx.Node, ...] = ()

    @property
    def axis(self) -> int:
        """The number of the axis."""
        return len(self.lead) - 1

    @property
    def length(self) -> int:
        """The number of positions of the axis."""
        return self.lead[-1]

    def front(self, node: fx.Node) -> int:
        """Return how many first axes of a tensor count positions; one may count those of all rows."""
        shape = shape_of(node)
        if shape[: len(self.lead)] == self.lead:
            return len(self.lead)
        return int(self.is_flat(node))

    def is_flat(self, node: fx.Node) -> bool:
        """Return whether the first axis of a tensor counts the positions of all rows."""
        return shape_of(node)[:1] == (math.prod(self.lead),)

    def reads(self, node: fx.Node, value: fx.Node) -> bool:
        """Return whether a node takes the picked positions of a tensor."""
        read, name = arguments_of(node), packet(node.target)
        if self.front(value) != len(self.lead):
            return False
        if name == "select" and not self.indices:
            return (_number(read["dim"], value), _position(read["index"], self.length)) == (
                self.axis,
                self.index,
            )
        return name == "index" and _nodes(read["indices"]) == self.indices != ()


def picks(crossing: Crossing, gradients: Collection[fx.Node]) -> Iterator[Pick]:
    """Find the gradients that are put at one position of an axis, among zeros."""
    for node in crossing.backward.nodes:
        read, shape, name = arguments_of(node), shape_of(node), packet(node.target)
        if node not in gradients or not shape or not _is_zero(read.get("self")):
            continue
        if name == "select_scatter":
            axis = _number(read["dim"], node)
            index = _position(read["index"], shape[axis])
            if shape[axis] >= FEWEST and index is not None:
                yield Pick(node, shape[: axis + 1], index)
        elif name == "index_put":
            indices = _nodes(read["indices"])
            if len(shape) > 1 and shape[1] >= FEWEST and _is_of_each_row(crossing, indices, shape[0]):
                yield Pick(node, shape[:2], indices=indices)


def _is_of_each_row(crossing: Crossing, indices: tuple[fx.Node, ...], rows: int) -> bool:
    """Return whether indices are the numbers of all rows, in order, and a position for each."""
    if len(indices) != 2 or any(shape_of(node) != (rows,) for node in indices):
        return False
    numbers = crossing.known().get(indices[0], indices[0])
    read = arguments_of(numbers)
    return packet(numbers.target) == "iota" and (read["start"], read["step"]) == (0, 1)


class Zeros:
    """The gradients of a backward graph that are zero at all positions but the picked ones.

    Args:
        graph: The backward graph.
        pick: The positions.
        gradients: The nodes that depend on the incoming gradient.
    """

    def __init__(self, graph: fx.Graph, pick: Pick, gradients: Collection[fx.Node]) -> None:
        self._pick, self._gradients = pick, gradients
        self._zeros = {pick.gradient}
        for node in graph.nodes:
            if node in gradients and pick.front(node) and self._keeps_zeros(node):
                self._zeros.add(node)

    def hidden(self, values: Collection[fx.Node]) -> list[fx.Node]:
        """Return those values whose other positions may hold anything finite without changing a result.

        No product of such a value and one that keeps its own positions is left: values of two positions may
        overflow together, and ∞ · 0 is not 0.
        """
        followers = {value: self._followers(value) for value in values}
        hidden = {value: nodes for value, nodes in followers.items() if nodes}
        while True:
            known = {node for nodes in hidden.values() for node in nodes}
            apart = {
                value: nodes
                for value, nodes in hidden.items()
                if all(node is value or self._is_made_of(node, known) for node in nodes)
            }
            if len(apart) == len(hidden):
                return list(hidden)
            hidden = apart

    def _followers(self, value: fx.Node) -> set[fx.Node]:
        """Return what is computed from a value before it meets zeros; nothing if it meets anything else."""
        waiting, seen = [value], {value}
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user in seen or self._meets_zeros(user, node):
                    continue
                if user in self._gradients or not self._by_positions(user, node):
                    return set()
                seen.add(user)
                waiting.append(user)
        return seen

    def _is_made_of(self, node: fx.Node, known: Collection[fx.Node]) -> bool:
        """Return whether all that a node is computed from is known, or the same at all positions."""
        rank, front = len(shape_of(node)), self._pick.front(node)
        for given in node.all_input_nodes:
            value = given.meta.get("val")
            lengths = tuple(value.shape) if isinstance(value, Tensor) else ()
            if given not in known and any(n != 1 for n in lengths[: max(0, front - rank + len(lengths))]):
                return False
        return True

    def _keeps_zeros(self, node: fx.Node) -> bool:
        """Return whether a node is zero wherever the gradients that it reads are."""
        name, given = packet(node.target), node.args
        if name == "mm":
            return self._is_zero_matrix(given[0])
        if name == "mul":
            return any(self._is_zero_along(node, factor) for factor in given)
        if name in ("add", "sub"):
            return all(self._is_zero_along(node, term) for term in given[:2])
        if name == "where":
            return all(_is_zero(end) or self._is_zero_along(node, end) for end in given[1:])
        if name in ("div", "neg", "clone", *CASTS):
            return self._is_zero_along(node, given[0])
        source = given[0] if name in (*RESHAPES, *REDUCTIONS, "expand") else None
        return isinstance(source, fx.Node) and source in self._zeros and self._by_positions(node, source)

    def _is_zero_along(self, node: fx.Node, operand: object) -> bool:
        return isinstance(operand, fx.Node) and operand in self._zeros and self._along(node, operand)

    def _is_zero_matrix(self, node: object) -> bool:
        """Return whether a node has a row for each position, zero at all but the picked ones."""
        return isinstance(node, fx.Node) and node in self._zeros and self._pick.is_flat(node)

    def _along(self, node: fx.Node, operand: fx.Node) -> bool:
        """Return whether a node has an operand's positions in the same place."""
        front = self._pick.front(operand)
        return len(shape_of(node)) == len(shape_of(operand)) and 0 < front == self._pick.front(node)

    def _by_positions(self, node: fx.Node, source: fx.Node) -> bool:
        """Return whether each position of a node depends on that position of its source only."""
        name, front = packet(node.target), self._pick.front(source)
        if name in RESHAPES:
            return self._pick.front(node) > 0
        if name in REDUCTIONS:
            numbers = [_number(axis, source) for axis in _entries(arguments_of(node).get("dim"))]
            return bool(numbers) and min(numbers) >= front > 0
        return (is_pointwise(node) or name in ("expand", *CASTS)) and self._along(node, source)

    def _meets_zeros(self, user: fx.Node, value: fx.Node) -> bool:
        """Return whether a node multiplies a value's other positions by zeros, or does not read them."""
        name = packet(user.target)
        if user in self._zeros:
            return is_pointwise(user) and self._along(user, value)
        if name == "permute":
            return all(self._is_product(product, user) for product in user.users)
        if name == "mm":
            return user.args[1] is value and self._is_product(user, user.args[0])
        return self._pick.reads(user, value)

    def _is_product(self, node: fx.Node, turned: object) -> bool:
        """Return whether a node is a sum over all positions of products, of which one factor is zero."""
        if packet(node.target) != "mm" or not isinstance(turned, fx.Node) or node.args[0] is not turned:
            return False
        if packet(turned.target) != "permute" or turned.args[1] != [1, 0]:
            return False
        source, other = turned.args[0], node.args[1]
        if self._is_zero_matrix(other):
            return isinstance(source, fx.Node) and self._pick.is_flat(source)
        return self._is_zero_matrix(source)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the lengths of a tensor; none if they vary between calls, or if a node is no tensor."""
    value = node.meta.get("val")
    lengths = cast("tuple[object, ...]", value.shape) if isinstance(value, Tensor) else ()
    constant = tuple(length for length in lengths if isinstance(length, int))
    return constant if len(constant) == len(lengths) else ()


def _number(axis: object, node: fx.Node) -> int:
    """Return the number of an axis, which may be counted from the last."""
    assert isinstance(axis, int)
    return axis % len(shape_of(node))


def _position(index: object, length: int) -> int | None:
    """Return a position, which may be counted from the last; None if it varies between calls."""
    return index % length if isinstance(index, int) else None


def _nodes(indices: object) -> tuple[fx.Node, ...]:
    """Return indices if all of them are nodes; otherwise none."""
    given = _entries(indices)
    nodes = tuple(index for index in given if isinstance(index, fx.Node))
    return nodes if len(nodes) == len(given) else ()


def _entries(argument: object) -> Sequence[object]:
    """Return the entries of a list; of another argument none."""
    return cast("Sequence[object]", argument) if isinstance(argument, list | tuple) else ()


def _is_zero(node: object) -> bool:
    """Return whether a node is a tensor of zeros."""
    if not isinstance(node, fx.Node):
        return False
    read = arguments_of(node)
    return packet(node.target) in ("full", "scalar_tensor") and read.get("fill_value", read.get("s")) == 0
