"""What follows each operation of a forward graph: whether the slopes that arrive at it may be singular.

The rule is that of `activation_compression.following`; here all nodes that read a result are known, but
those outside of the graph: what it returns may be rounded, as where eager code reads it in a custom function.
"""

from __future__ import annotations

import operator
from collections import defaultdict

from torch import Tensor, fx

from activation_compression.compiled.calls import CASTS, is_view, names_of, packet, source_of
from activation_compression.compiled.crossing import Crossing
from activation_compression.compiled.readings import (
    ADDITIVE,
    TABLE,
    formula_name,
    is_floating,
    of_itself,
    settings_of,
)
from activation_compression.compiled.tensors import hint_of, is_of_parameter
from activation_compression.formulas import EXACT, SMOOTH, SQUARED, Formula, effect

__all__ = ["Following"]


class Following:
    """The operations of a forward graph, found by the number that backward's nodes have too.

    Args:
        crossing: The graphs.
        trained: Forward's nodes that depend on an input that trains.
    """

    def __init__(self, crossing: Crossing, trained: set[fx.Node]) -> None:
        self._trained = trained
        self._made: dict[object, list[fx.Node]] = defaultdict(list)
        for node in crossing.forward.nodes:
            if node in trained and is_floating(node):
                number = node.meta.get("seq_nr")
                self._made[number].append(node)
                while is_view(node):  # of equal operations one is left, and a view of its result
                    node = source_of(node)
                    self._made[number].append(node)

    def may_be_singular(self, reading: fx.Node) -> bool:
        """Return whether the gradient that a node of the backward graph reads may grow without bound."""
        waiting = list(self._made.get(reading.meta.get("seq_nr", ""), ()))
        seen = set(waiting)
        if not waiting:
            return True  # unknown
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user in seen or user.op == "output" or not _has_slope(user):
                    continue
                found = self._effect(user, node)
                if found == "singular":
                    return True
                if found == "passed on":
                    seen.add(user)
                    waiting.append(user)
        return False

    def _effect(self, user: fx.Node, value: fx.Node) -> str:
        if "keepdim" in names_of(user.target) and _is_linear(user) and SQUARED in _formulas(value, value):
            return "mixed"  # a sum of squares is 0 only if all of them are
        if is_view(user) or _operation_of(user) == _operation_of(value):
            return "passed on"  # as when the first of its parts was met
        others = [given for given in user.all_input_nodes if given is not value and is_floating(given)]
        name = packet(user.target)
        if not _is_part(user) and any(self._grows(given, user, name == "div") for given in others):
            return "singular"
        found = effect(_formulas(user, value))
        constant = others and not any(given in self._trained or is_of_parameter(given) for given in others)
        return "passed on" if found == "mixed" and constant else found

    def _grows(self, factor: fx.Node, product: fx.Node, divides: bool) -> bool:
        """Return whether a factor comes from a node that may be singular, element by element."""
        if _is_linear(product) or _elements(factor) < _elements(product):
            return False
        while _is_linear(factor) and len(factor.all_input_nodes) == 1:
            [factor] = factor.all_input_nodes
        if divides or factor.op != "call_function" or not factor.all_input_nodes:
            return divides
        return is_floating(factor) and effect(_formulas(factor, factor.all_input_nodes[0])) == "singular"


def _formulas(user: fx.Node, value: fx.Node) -> list[Formula]:
    """Return how a node's backward formula reads its values; as parts of a known operation, that one's."""
    name = packet(user.target)
    if user.target is operator.getitem:
        return [SMOOTH]
    entries = TABLE.get(formula_name(packet(user.meta.get("original_aten")) or name))
    if not entries:
        return [of_itself(user, value, name)]
    whole = not _is_part(user)
    return [
        entry if isinstance(entry, Formula) else entry(settings_of(user)) if whole else EXACT
        for entry in entries.values()
    ]


def _is_part(node: fx.Node) -> bool:
    """Return whether a node is a part of an operation that the table knows."""
    group = packet(node.meta.get("original_aten"))
    return bool(group) and group != packet(node.target) and formula_name(group) in TABLE


def _operation_of(node: fx.Node) -> tuple[object, object]:
    """Return what parts of one operation have in common."""
    return packet(node.meta.get("original_aten")) or node, node.meta.get("seq_nr")


def _has_slope(node: fx.Node) -> bool:
    """Return whether a node's result may depend on its inputs by a slope: floats, or several results."""
    return is_floating(node) or isinstance(node.meta.get("val"), tuple | list)


def _is_linear(node: fx.Node) -> bool:
    return is_view(node) or packet(node.target) in (*ADDITIVE, *CASTS)


def _elements(node: fx.Node) -> int:
    value = node.meta.get("val")
    return hint_of(value.numel()) if isinstance(value, Tensor) else 1
