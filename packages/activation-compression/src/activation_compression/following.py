"""Values whose form depends on what follows: p in the backward formula p g is exact if g may hold 1 / p.

A value waits until the nodes that read its operation's result are known. Where one sums products, or
normalises, no slope that arrives fits to a single value, and it may be rounded. Nodes that only move, select,
scale, add, or work element by element pass slopes on; so what reads their results counts too. All other nodes
may be singular: the value stays exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

import torch
from torch import Tensor

from activation_compression.blocks import storage_id
from activation_compression.formulas import EXACT, SQUARED, Formula, Formulas, effect
from activation_compression.nodes import Node
from activation_compression.operation import LAST, CurrentOperation, is_custom, saved_contents
from activation_compression.stored import Saved

__all__ = ["Following"]

TORCHS: object = vars(torch._C)["_functions"]  # pyright: ignore[reportPrivateUsage]
"""The module of torch's own nodes."""
SUMS = ("SumBackward0", "SumBackward1", "MeanBackward0", "MeanBackward1")
"""Nodes of a sum over all axes, and over some."""

Hold = Callable[[Saved, "Node | None", "str | int"], None]


class Following:
    """The values of a forward pass that wait.

    Args:
        formulas: How backward formulas read the saved values.
        operation: The torch function that is running.
        hold: Called with a value, its node and its name there; without a node if the value must be exact.
    """

    def __init__(self, formulas: Formulas, operation: CurrentOperation, hold: Hold) -> None:
        self._formulas, self._operation, self._hold = formulas, operation, hold
        self._waiting: dict[Node, list[tuple[Saved, str | int]]] = {}
        self._open: set[Node] = set()  # have passed on slopes of values that wait
        self._met: set[Node] = set()

    @property
    def waits(self) -> bool:
        """Whether a value waits."""
        return bool(self._waiting)

    def wait(self, node: Node, saved: Saved, value: str | int) -> None:
        """Let a value of the newest node wait."""
        self._waiting.setdefault(node, []).append((saved, value))
        self._open.add(node)

    def meet(self, node: Node) -> None:
        """Decide on the values that a new node decides; before it, callers' own functions that lead to it.

        No function of torch tells of these.
        """
        if self._waiting:
            for new in self._unmet(node):
                self._meet(new)

    def leave(self) -> None:
        """Decide on the values that wait: what no function of torch has read by now may be rounded.

        That is a loss, or what a custom autograd function reads, such as a layer with weights in 4 bits.
        """
        self._decide(dict.fromkeys(self._waiting, False))

    def before_change(self, changing: Tensor) -> None:
        """Store the values in the memory of a tensor that is about to be changed in place."""
        touched = [
            node
            for node, values in self._waiting.items()
            if any(s.tensor is not None and storage_id(s.tensor) == storage_id(changing) for s, _ in values)
        ]
        self._decide(dict.fromkeys(touched, False))

    def _unmet(self, node: Node) -> list[Node]:
        """Return the new nodes behind a node that were not met, itself included, in the order of the pass."""
        first = next(iter(self._waiting))._sequence_nr()
        unmet: list[Node] = []
        nodes: list[Node | None] = [node]
        while nodes:
            new = nodes.pop()
            if new is not None and new not in self._met and first < new._sequence_nr() < LAST:
                self._met.add(new)
                unmet.append(new)
                nodes += [before for before, _ in new.next_functions]
        return sorted(unmet, key=lambda new: new._sequence_nr()) if len(unmet) > 1 else unmet

    def _meet(self, node: Node) -> None:
        """Decide on the values behind a node, or let it pass on their slopes."""
        decided: dict[Node, bool] = {}
        read = {n: before for n, (before, _) in enumerate(node.next_functions) if before in self._open}
        effects = {number: self._effect(node, number) for number in read}
        for effect_of_node in ("singular", "mixed"):
            ends = [before for number, before in read.items() if effects[number] == effect_of_node]
            for behind in self._closed(ends):
                decided[behind] = effect_of_node == "singular"
        if any(before in self._open for before in read.values()):
            self._open.add(node)
        self._decide(decided)

    def _closed(self, ends: Iterable[Node | None]) -> list[Node]:
        """Close some nodes and all open ones behind them, and return them: their values are decided now."""
        closed: list[Node] = []
        nodes = list(ends)
        while nodes:
            node = nodes.pop()
            if node in self._open:
                self._open.remove(node)
                closed.append(node)
                nodes += [before for before, _ in node.next_functions]
        return closed

    def _decide(self, exact: dict[Node, bool]) -> None:
        for node in [node for node in self._waiting if node in exact]:
            for saved, value in self._waiting.pop(node):
                self._hold(saved, None if exact[node] else node, "" if exact[node] else value)
        if not self._waiting:
            self._open.clear()
            self._met.clear()

    def _effect(self, node: Node, number: int) -> str:
        formulas = self._read(node)
        before, others = node.next_functions[number][0], node.next_functions
        if node.name() in SUMS and before is not None and SQUARED in self._read(before):
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
    """Return whether a node's slope is constant or that of a matrix, as far as what it saved can tell.

    One of torch's own nodes saved no numbers but scalars. A caller's own function may have saved a matrix:
    numbers that do not fit to what it read or made, element by element.
    """
    saved = [content for _, content in saved_contents(node) if _is_floating(content)]
    if is_custom(node):
        inputs = [(n, place) for n, place in node.next_functions if n is not None and n.next_functions]
        shapes = [part.shape for part in node._input_metadata]
        shapes += [n._input_metadata[place].shape for n, place in inputs]
        return not any(_fit(getattr(content, "shape", ()), shape) for content in saved for shape in shapes)
    return type(node) is vars(TORCHS).get(node.name()) and not saved


def _fit(one: Iterable[int], other: Iterable[int]) -> bool:
    """Return whether tensors of these shapes can be multiplied element by element."""
    pairs = zip(reversed([*one]), reversed([*other]), strict=False)
    return all(first == second or 1 in (first, second) for first, second in pairs)


def _is_floating(content: object) -> bool:
    """Return whether a saved content is no number, no integers, and no mask."""
    if isinstance(content, Tensor) and content.ndim == 0:
        return False
    dtype = getattr(content, "dtype", torch.float32)  # what other hooks made of it may be anything
    return content is not None and (dtype.is_floating_point or dtype.is_complex)
