"""How much the rounding of each saved tensor moves the gradient.

Rounding adds e_l to saved tensor h_l: independent over elements, mean 0, variance D_l S(b). To first order
the gradient moves by J_l e_l with J_l = ∂g/∂h_l, taken only at the saved copy. Its variance is c_l S(b) with
c_l = tr(J_l D_l J_lᵀ) = E_v ‖D_l^½ J_lᵀ v‖², v a random vector of signs: one backward pass through the
backward pass gives J_lᵀ v of all tensors together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from activation_compression.allocation import Way, noise
from activation_compression.blocks import Layout, as_block
from activation_compression.draws import Draws
from activation_compression.formulas import Formula
from activation_compression.group_choice import ways_of
from activation_compression.grouping import Grouping
from activation_compression.nodes import Node, node_of
from activation_compression.quantizer import Codes
from activation_compression.recipe import Derived
from activation_compression.stored import Saved, Stored, StoredView

__all__ = ["Adjoint"]


class Adjoint:
    """Records what a forward pass stores, then measures all tensors together, for each way to group them.

    D_l is measured: a tensor is rounded once in each way, to `bits`, and D_l S(b) is the mean squared error
    of a group.

    Args:
        size: Approximate elements of a group.
        bits: The width at which ways are compared.
        seed: Seed of that rounding.
        choose: Whether to measure other ways besides the usual one.
    """

    def __init__(self, size: int, bits: int, seed: int, choose: bool) -> None:
        self._size, self._bits, self._draws, self._choose = size, bits, Draws(seed), choose
        self._groupings: dict[str, dict[str, Grouping]] = {}
        self._spread: dict[str, dict[str, Tensor]] = {}
        self.elements: dict[str, int] = {}
        self.least: dict[str, int] = {}
        self.finer: set[str] = set()
        self._views: dict[Node, dict[int, StoredView | None]] = {}
        self._waiting: dict[Stored, set[tuple[Node, int]]] = {}
        self._slopes: dict[Stored, Tensor] = {}
        self._sums: dict[str, dict[str, float]] = {}

    def record(self, tensor: Tensor, saved: Saved, formula: Formula) -> None:
        """Record a saved tensor with gradient history, and how backward reads it.

        One bit can be enough if an operation is linear in the tensor. Other operations pass the error on to
        the gradient of lower layers, where it grows: normalising outliers in one bit multiplies it several
        times.
        """
        node, view = node_of(tensor), None
        if node is None:
            return
        if isinstance(saved.held, StoredView) and (rounded := list(_rounded(saved.held))):
            view = saved.held
            if formula.finer:
                self.finer |= {stored.name for stored, _ in rounded}
            direct = formula.kind == "linear" and isinstance(view.stored.content, Codes)
            least_bits = 1 if direct else 2
            if isinstance(view.stored.content, Codes):
                self._try_ways(tensor, view.stored.name, view.stored.content, formula)
            for stored, codes in rounded:
                self.elements[stored.name] = codes.count
                self.least[stored.name] = max(least_bits, self.least.get(stored.name, 1))
        views = self._views.setdefault(node, {})
        views[tensor.output_nr] = views.get(tensor.output_nr) or view

    def _try_ways(self, tensor: Tensor, name: str, codes: Codes, formula: Formula) -> None:
        """Measure how far rounding moves the elements of each group, in each way to group them."""
        if name in self._groupings:
            return
        block, layout, _ = as_block(tensor.detach())
        ways = {formula.groups: codes.grouping}
        if self._choose:
            ways = ways_of(tensor, layout, block.numel(), formula.groups, self._size)
        self._groupings[name], self._spread[name] = ways, {}
        ones = torch.ones(block.numel(), device=block.device)
        for way, grouping in ways.items():
            rounded = Codes.pack(block, self._bits, grouping, self._draws.next(block, name))
            squares = (rounded.unpack().float() - block.float()).square()
            mean = grouping.sums(squares, self._bits) / grouping.sums(ones, self._bits)
            self._spread[name][way] = mean / noise(self._bits)

    def ways(self, measured: Mapping[str, float] | None = None) -> dict[str, dict[str, Way]]:
        """Return key → way → its sensitivity and the number of its groups, the usual way first.

        Args:
            measured: Key → c_l of the usual way, if it was measured by other means. c_l of other ways is in
                proportion to their mean squared error.
        """
        ways: dict[str, dict[str, Way]] = {}
        for name, groupings in self._groupings.items():
            spread = self._spread[name]
            sums = dict.fromkeys(groupings, 0.0) | self._sums.get(name, {})
            if measured is not None:
                errors = {way: float(s.mean()) for way, s in spread.items()}
                usual = next(iter(errors.values())) or 1.0
                sums = {way: measured[name] * error / usual for way, error in errors.items()}
            ways[name] = {way: Way(sums[way], spread[way].numel()) for way in groupings}
        return ways

    def measure(self, gradients: Sequence[Tensor], generator: torch.Generator, probes: int) -> None:
        """Measure c_l of each tensor and way, the mean over random signs.

        Args:
            gradients: Gradients of the parameters, with their graph.
            generator: Source of the signs.
            probes: Number of vectors of signs, at least 1.
        """
        self._sums = {}
        handles = [node.register_prehook(self._stop(node)) for node in self._views]
        try:
            for number in range(probes):
                self._waiting = {}
                for node, views in self._views.items():
                    for output, view in views.items():
                        for stored, _ in _rounded(view) if view is not None else ():
                            self._waiting.setdefault(stored, set()).add((node, output))
                product = torch.stack([(g * _signs(g, generator)).sum() for g in gradients]).sum()
                if product.requires_grad:
                    torch.autograd.backward(product, retain_graph=number + 1 < probes)
                for stored in list(self._slopes):
                    self._settle(stored)
        finally:
            for handle in handles:
                handle.remove()
        for sums in self._sums.values():
            sums.update({way: total / probes for way, total in sums.items()})

    def _stop(self, node: Node) -> Callable[[Sequence[Tensor | None]], tuple[None, ...]]:
        """Return a hook that records the gradient at a node of the forward graph and passes none on.

        So only ∂⟨g, v⟩/∂h through the saved copies of h arrives: later activations stop the rest.
        """

        def record(arriving: Sequence[Tensor | None]) -> tuple[None, ...]:
            for output, view in self._views[node].items():
                if view is not None:
                    if (slope := arriving[output]) is not None:
                        self._add(view, slope.detach())
                    for stored, _ in _rounded(view):
                        self._arrived(stored, (node, output))
            return (None,) * len(arriving)

        return record

    def _add(self, view: StoredView, slope: Tensor) -> None:
        """Add a slope to that of a rounded block; for a derived block, to those of its sources."""
        content, layout = view.stored.content, view.layout
        if isinstance(content, Codes):
            total = self._slopes.get(view.stored)
            if total is None:
                total = self._slopes[view.stored] = slope.new_zeros(content.count, dtype=torch.float32)
            _part(total, layout).add_(slope.sum_to_size(layout.distinct))
        elif isinstance(content, Derived):
            flat = slope.new_zeros(content.count)
            _part(flat, layout).add_(slope.sum_to_size(layout.distinct))
            for source, slope_of_source in content.recipe.back(content.layout.view(flat)):
                self._add(source, slope_of_source)

    def _arrived(self, stored: Stored, output: tuple[Node, int]) -> None:
        """Note that the slope at an output of a node is complete; after the last output, settle the block."""
        waiting = self._waiting[stored]
        waiting.discard(output)
        if not waiting and stored in self._slopes:
            self._settle(stored)

    def _settle(self, stored: Stored) -> None:
        """Add Σ_i D_i slope_i² of a tensor, for each way to group it."""
        slopes, sums = self._slopes.pop(stored).square(), self._sums.setdefault(stored.name, {})
        for way, grouping in self._groupings[stored.name].items():
            squares = grouping.sums(slopes, self._bits)
            sums[way] = sums.get(way, 0.0) + float((squares * self._spread[stored.name][way]).sum())


def _rounded(view: StoredView) -> Iterator[tuple[Stored, Codes]]:
    """Yield the rounded block of a saved tensor, or those from which it is computed."""
    content = view.stored.content
    if isinstance(content, Codes):
        yield view.stored, content
    elif isinstance(content, Derived):
        for source in content.recipe.views():
            yield from _rounded(source)


def _part(block: Tensor, layout: Layout) -> Tensor:
    return block.as_strided(layout.distinct, layout.strides, layout.offset)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(like.device, like.dtype)
