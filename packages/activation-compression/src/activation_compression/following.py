"""Values whose form depends on what follows: p in the backward formula p g is exact if g may hold 1 / p.

A value waits until the nodes that read its operation's result are known. Where one sums products, or
normalises, no slope that arrives fits to a single value, and it may be rounded. Nodes that only move, select,
scale, add, or work element by element pass slopes on; so what reads their results counts too. All other nodes
may be singular: the value stays exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from activation_compression.blocks import storage_id
from activation_compression.formulas import EXACT, SQUARED, Formula, Formulas, effect
from activation_compression.nodes import Node
from activation_compression.operation import CurrentOperation, saved_contents
from activation_compression.stored import Saved

__all__ = ["PATIENCE", "Following"]

TORCHS: object = vars(torch._C)["_functions"]  # pyright: ignore[reportPrivateUsage]
"""The module of torch's own nodes."""
PATIENCE = 4
"""Most operations whose values wait for what comes next."""

Hold = Callable[[Saved, "Node | None", "str | int"], None]


@dataclass(eq=False)
class Group:
    """The values that a node saved.

    Attributes:
        node: The node.
        values: The values, and their names at the node.
        reached: Nodes that pass their slopes on.
    """

    node: Node
    values: list[tuple[Saved, str | int]] = field(default_factory=list[tuple[Saved, "str | int"]])
    reached: set[Node] = field(default_factory=set[Node])


class Following:
    """The values of a forward pass that wait.

    Args:
        formulas: How backward formulas read the saved values.
        operation: The torch function that is running.
        hold: Called with a value, its node and its name there; without a node if the value must be exact.
    """

    def __init__(self, formulas: Formulas, operation: CurrentOperation, hold: Hold) -> None:
        self._formulas, self._operation, self._hold = formulas, operation, hold
        self._groups: list[Group] = []

    @property
    def waits(self) -> bool:
        """Whether a value waits."""
        return bool(self._groups)

    def wait(self, node: Node, saved: Saved, value: str | int) -> None:
        """Let a value of the newest node wait."""
        if not self._groups or self._groups[-1].node is not node:
            self._groups.append(Group(node, reached={node}))
        self._groups[-1].values.append((saved, value))

    def meet(self, node: Node) -> None:
        """Decide on the values that a new node decides."""
        for group in list(self._groups):
            numbers = [n for n, (before, _) in enumerate(node.next_functions) if before in group.reached]
            effects = {self._effect(node, number) for number in numbers}
            if effects - {"passed on"}:
                self._decide(group, exact="singular" in effects)
            elif effects:
                group.reached.add(node)

    def leave(self, count: int) -> None:
        """Let at most so many nodes wait: what no function of torch has read by then may be rounded.

        That is a loss, or what a custom autograd function reads, such as a layer with weights in 4 bits.
        """
        while len(self._groups) > count:
            self._decide(self._groups[0], exact=False)

    def before_change(self, changing: object) -> None:
        """Store the values in the memory of a tensor that is about to be changed in place."""
        if not isinstance(changing, Tensor):
            return
        for group in list(self._groups):
            if any(
                s.tensor is not None and storage_id(s.tensor) == storage_id(changing) for s, _ in group.values
            ):
                self._decide(group, exact=False)

    def _decide(self, group: Group, exact: bool) -> None:
        self._groups.remove(group)
        for saved, value in group.values:
            self._hold(saved, None if exact else group.node, "" if exact else value)

    def _effect(self, node: Node, number: int) -> str:
        formulas = self._read(node)
        before, others = node.next_functions[number][0], node.next_functions
        if (
            not formulas
            and hasattr(node, "_saved_keepdim")
            and before is not None
            and SQUARED in self._read(before)
        ):
            return "mixed"  # a sum of squares is 0 only if all of them are
        if formulas and any(self._grows(o, node) for n, (o, _) in enumerate(others) if n != number):
            return "singular"
        found = effect(formulas)
        return "passed on" if found == "mixed" and not self._is_trained(node) else found

    def _is_trained(self, node: Node) -> bool:
        """Return whether a node reads weights or activations; constants, as of one class, mix nothing."""
        saved = (content.tensor for _, content in saved_contents(node) if isinstance(content, Saved))
        return any(t is not None and t.requires_grad for t in saved) or self._operation.reads_parameters

    def _read(self, node: Node) -> list[Formula]:
        """Return how a node's formula reads its values; none if it is linear in its inputs."""
        return self._formulas.of(node) or ([] if _is_linear(node) else [EXACT])

    def _grows(self, factor: Node | None, product: Node) -> bool:
        """Return whether a factor comes from a node that may be singular, element by element."""
        while factor is not None and len(factor.next_functions) == 1 and not self._read(factor):
            factor = factor.next_functions[0][0]
        if factor is None or not factor.next_functions or _elements(factor) < _elements(product):
            return False
        return effect(self._read(factor)) == "singular"


def _elements(node: Node) -> int:
    return prod(node._input_metadata[0].shape)


def _is_linear(node: Node) -> bool:
    """Return whether one of torch's own nodes saved no numbers but scalars: its slope is then constant."""
    own = vars(TORCHS).get(node.name())
    return type(node) is own and not any(_is_floating(content) for _, content in saved_contents(node))


def _is_floating(content: object) -> bool:
    """Return whether a saved content is no number, no integers, and no mask."""
    if isinstance(content, Tensor) and content.ndim == 0:
        return False
    dtype = getattr(content, "dtype", torch.float32)  # what other hooks made of it may be anything
    return content is not None and (dtype.is_floating_point or dtype.is_complex)
