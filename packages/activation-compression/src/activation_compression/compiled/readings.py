"""How a backward graph uses each value that crosses to it, by looking up aten operations in the table.

A node of the graph knows its original operation, before the compiler decomposed it (`original_aten`).
torch names the formula of a node `Gelu` `gelu_backward` in aten, and its values as in the table, so the table
of `formulas` also works here. A value is followed through all computations from it until they meet a
gradient. Unknown operations are exact.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, fx

from activation_compression.compiled.calls import CASTS, arguments_of, is_pointwise, is_view, packet
from activation_compression.formulas import COUPLED, EXACT, FACTOR, FORMULAS, SMOOTH, Entry, Formula
from activation_compression.nodes import setting

__all__ = [
    "ADDITIVE",
    "AGAIN",
    "TABLE",
    "Reader",
    "Verdict",
    "forces_saving",
    "formula_name",
    "is_floating",
    "of_itself",
    "settings_of",
    "strictest",
]

SAME = {"output": "result", "out": "output", "grad_out": "grad_output"}
"""Name of an argument in a backward operation → its name in the table."""
BOUNDED = ("tanh", "sigmoid")
"""Functions of bounded slope that the table lists by their result."""
ADDITIVE = ("add", "sub", "rsub", "neg", "sum", "mean", "cat", "clone", "repeat", "constant_pad_nd")
ROWS = ("index", "index_select", "flip", "roll")

Entries = Mapping[str, Entry]
"""Value → its entry in the table."""


def _by_name() -> Mapping[str, Entries]:
    table: dict[str, dict[str, Entry]] = defaultdict(dict)
    for (node, value), entry in FORMULAS.items():
        table[node.partition("Backward")[0].lower()].setdefault(value, entry)
    return table


TABLE = _by_name()
"""Name of a formula in lower case → value → its entry in the table."""


AGAIN = "activation_compression_again"
"""Key in the meta of a fused attention's backward whose results follow from its q, k and v."""


def is_consistent(node: fx.Node) -> bool:
    """Return whether the results that a fused attention's backward reads follow from its q, k and v."""
    return bool(node.meta.get(AGAIN))


def formula_name(operation: str) -> str:
    """Return the name of a node of the autograd graph, in lower case, for an aten operation.

    Examples:
        >>> formula_name("native_layer_norm_backward"), formula_name("_softmax_backward_data")
        ('nativelayernorm', 'softmax')
    """
    return operation.removesuffix("_data").removesuffix("_backward").replace("_", "")


def forces_saving(node: fx.Node) -> bool:
    """Return whether a forward operation's result should cross, instead of being recomputed from its input.

    Softmax of rounded scores, divided by the sum of exact ones, is not a distribution; ReLU of rounded values
    is biased. So are tanh and sigmoid of values far from 0, but where other operations need these too, as in
    x · sigmoid(x), saving the result costs a second tensor.
    """
    group = packet(node.meta.get("original_aten"))
    entries = TABLE.get(formula_name(group), {})
    if "backward" in group or not entries or (group in BOUNDED and not _alone_needs(node)):
        return False
    kinds = {entry.kind if isinstance(entry, Formula) else "" for entry in entries.values()}
    if kinds != {"gate"} and (set(entries) != {"result"} or kinds == {"logarithm"}):
        return False
    return any(user.meta.get("original_aten") is not node.meta["original_aten"] for user in node.users)


def _alone_needs(node: fx.Node) -> bool:
    """Return whether a node alone needs its inputs, back to where they come from more than one element."""
    sources = [given for given in node.all_input_nodes if given.op != "placeholder"]
    return all(
        len(given.users) == 1 and (not (is_pointwise(given) or is_view(given)) or _alone_needs(given))
        for given in sources
    )


@dataclass(frozen=True)
class Verdict:
    """How a value may be stored.

    Attributes:
        kind: rounded, half (16 bits) or exact.
        finer: Whether it gets twice the bits.
        groups: Which elements share a minimum and a step, as in the table.
        gates: Comparisons of it, which the forward pass must make.
    """

    kind: str
    finer: bool = False
    groups: str = "columns"
    gates: tuple[fx.Node, ...] = ()


def strictest(groups: set[str]) -> str:
    """Return the grouping of a value that several formulas read.

    Examples:
        >>> strictest({"columns", "rotated"})
        'rotated'
    """
    return next(kind for kind in ("neighbours", "rotated", "columns") if kind in groups)


class Reader:
    """A backward graph, and how it uses its inputs.

    Args:
        graph: The backward graph from the partitioner.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.gradients: set[fx.Node] = set()
        """Nodes that depend on the incoming gradient."""
        for node in graph.nodes:
            if node.op == "placeholder":
                if "tangents" in node.name:
                    self.gradients.add(node)
            elif any(given in self.gradients for given in node.all_input_nodes):
                self.gradients.add(node)

    def verdict(self, value: fx.Node, may_be_singular: Callable[[fx.Node], bool]) -> Verdict:
        """Return how an input of the graph may be stored.

        Args:
            value: The input.
            may_be_singular: Whether the gradient that a node reads may grow without bound.
        """
        waiting, seen, direct = [value], {value}, {value}
        gates: dict[fx.Node, None] = {}
        finer = half = False
        groups = {"columns"}
        while waiting:
            node = waiting.pop()
            for user in node.users:
                if user.op == "output":
                    continue
                if user not in self.gradients and _kind_of(user) is torch.bool:
                    if not all(map(_is_smooth, (user, *user.users))):
                        gates[user] = None
                    continue
                formula = self._formula(user, node)
                if formula.kind not in ("linear", "smooth", "logarithm"):
                    return Verdict("exact")
                if formula.wary and user in self.gradients and may_be_singular(user):
                    return Verdict("exact")
                if node in direct:
                    finer |= formula.finer
                    groups.add(formula.groups)
                half |= formula.kind == "logarithm"
                if user not in self.gradients and user not in seen:
                    seen.add(user)
                    waiting.append(user)
                    if node in direct and is_view(user):
                        direct.add(user)
        return Verdict("half" if half else "rounded", finer, strictest(groups), tuple(gates))

    def _formula(self, user: fx.Node, value: fx.Node) -> Formula:
        """Return how a node reads a value."""
        name = packet(user.target)
        group = packet(user.meta.get("original_aten")) or name
        entries = TABLE.get(formula_name(group), {})
        if user.target is operator.getitem:
            return SMOOTH
        if not is_floating(user) and _kind_of(user) is not None:
            return EXACT
        if "backward" in group:
            return _of_backward(user, value, group, entries)
        if name != group and entries:
            return _of_forward(group, entries)
        return of_itself(user, value, name)


def _is_smooth(node: fx.Node) -> bool:
    """Return whether a node belongs to a formula without jumps.

    Its comparisons choose between ways to compute one function, and so must be of the values that it gets:
    softplus, at a rounded value beyond the threshold that the exact one was below, would be ∞ / ∞.
    """
    entries = TABLE.get(formula_name(packet(node.meta.get("original_aten"))), {})
    entry = entries.get("self")
    return isinstance(entry, Formula) and entry.kind == "smooth"


def _of_backward(user: fx.Node, value: fx.Node, group: str, entries: Entries) -> Formula:
    """A formula as one operation has named arguments; if decomposed, all its values must be alike."""
    if packet(user.target) == group:
        if COUPLED in entries.values() and not is_consistent(user):
            return EXACT
        names = _names(user, value)
        if names and is_consistent(user) and set(names) <= {"out", "logsumexp"}:
            return SMOOTH  # made again
        read = [entries.get(SAME.get(name, name), EXACT) for name in names]
    else:
        read = list(entries.values())
    formulas = [entry for entry in read if isinstance(entry, Formula)]
    alike = len(formulas) == len(read) and len({formula.kind for formula in formulas}) == 1
    return formulas[0] if alike else EXACT


def _of_forward(group: str, entries: Entries) -> Formula:
    """A repeated forward operation: smooth if its slope is."""
    of_input = entries.get("self", entries.get("input", EXACT))
    if group in BOUNDED or (isinstance(of_input, Formula) and of_input.kind in ("linear", "smooth")):
        return SMOOTH
    result = entries.get("result")
    return result if isinstance(result, Formula) and result.kind == "logarithm" else EXACT


def of_itself(user: fx.Node, value: fx.Node, name: str) -> Formula:
    """An operation that is its own formula: products, sums, views."""
    if is_view(user) or name in ADDITIVE or name in CASTS or name in BOUNDED:
        return SMOOTH
    places = _names(user, value)
    if name in ROWS and places == ["self"]:
        return SMOOTH
    if name == "div":
        return EXACT if "other" in places else FACTOR
    if name == "where":
        return SMOOTH if "condition" not in places else EXACT
    if name in ("addmm", "baddbmm") and places == ["self"]:
        return SMOOTH
    settings = settings_of(user)
    if name == "pow" and isinstance(exponent := setting(settings, "exponent"), int | float):
        settings._saved_exponent = exponent + 1  # the slope of the next power
    entries = [TABLE.get(formula_name(name), {}).get(place, EXACT) for place in places]
    formulas = [entry if isinstance(entry, Formula) else entry(settings) for entry in entries]
    first_exact = next((f for f in formulas if f.kind not in ("linear", "smooth")), None)
    return first_exact or (formulas[0] if formulas else EXACT)


def settings_of(node: fx.Node) -> SimpleNamespace:
    """Return the settings of a node, named as in nodes of the autograd graph."""
    return SimpleNamespace(**{f"_saved_{name}": entry for name, entry in arguments_of(node).items()})


def _names(user: fx.Node, value: fx.Node) -> list[str]:
    """Return the names of a node's arguments that hold a value."""
    return [name for name, entry in arguments_of(user).items() if entry is value]


def _kind_of(node: fx.Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, Tensor) else None


def is_floating(node: fx.Node) -> bool:
    """Return whether a node's result is one tensor of floating point."""
    kind = _kind_of(node)
    return kind is not None and kind.is_floating_point
