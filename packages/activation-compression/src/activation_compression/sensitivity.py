"""How much the rounding of each saved tensor moves the gradient.

Rounding adds e_l to saved tensor h_l: independent over elements, mean 0, variance D_l S(b). To first order
the gradient moves by J_l e_l with J_l = ∂g/∂h_l, taken at the saved copy alone. Its variance is c_l S(b) with
c_l = tr(J_l D_l J_lᵀ) = E_v ‖D_l^½ J_lᵀ v‖², v a random vector of signs: one backward pass through the
backward pass yields J_lᵀ v of all tensors together.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from activation_compression.allocation import noise
from activation_compression.blocks import Layout
from activation_compression.formulas import Formula
from activation_compression.quantizer import Codes
from activation_compression.recipe import Derived
from activation_compression.stored import Saved, Stored, StoredView
from finetune_common.errors import ConfigurationError

__all__ = [
    "Adjoint",
    "distance",
    "frozen",
    "gradient",
    "leaves",
    "like_groups",
    "preserved",
    "probed",
    "shares",
]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave random states (torch on all devices, NumPy, Python), buffers and `.grad` as they were before."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, value in gradients:
                parameter.grad = value


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def leaves(loss: Tensor) -> list[Tensor]:
    """Return every leaf that a backward pass from a loss would reach, parameters of other models too."""
    found, open_nodes, seen = [], [cast(Any, loss.grad_fn)], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        open_nodes += [following for following, _ in node.next_functions]
    return found


@contextmanager
def frozen(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep a backward pass from reaching leaves: who watches them would take it for one of training."""
    for tensor in tensors:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(True)


class Adjoint:
    """Sees what a forward pass stores, and then measures all of it at once."""

    def __init__(self) -> None:
        self.elements: dict[str, int] = {}
        self.least: dict[str, int] = {}
        self.finer: set[str] = set()
        self._places: dict[Any, dict[int, StoredView | None]] = {}
        self._waiting: dict[Stored, set[tuple[Any, int]]] = {}
        self._slopes: dict[Stored, Tensor] = {}
        self._sums: dict[str, float] = {}

    def saw(self, tensor: Tensor, saved: Saved, formula: Formula) -> None:
        """Note a saved tensor with gradient history, and how backward reads it.

        One bit is enough, if anywhere, where an operation is linear in what it saved. Others let the error
        into the gradient that flows on below them, and there it is multiplied: by a normalisation of outliers
        in one bit several times over.
        """
        node, place = tensor.grad_fn, None
        if node is None:
            return
        if isinstance(saved.held, StoredView) and (rounded := list(_rounded(saved.held))):
            place = saved.held
            if formula.finer:
                self.finer |= {stored.name for stored, _ in rounded}
            direct = formula.kind == "linear" and isinstance(place.stored.content, Codes)
            own = 1 if direct else 2
            for stored, codes in rounded:
                self.elements[stored.name] = codes.count
                self.least[stored.name] = max(own, self.least.get(stored.name, 1))
        places = self._places.setdefault(node, {})
        places[tensor.output_nr] = places.get(tensor.output_nr) or place

    def measure(
        self, gradients: Sequence[Tensor], generator: torch.Generator, probes: int
    ) -> dict[str, float]:
        """Return key → c_l, the mean over random signs.

        Args:
            gradients: Of the parameters, with their graph.
            generator: Of the signs.
            probes: Number of vectors of signs, at least 1.
        """
        self._sums = dict.fromkeys(self.elements, 0.0)
        handles = [node.register_prehook(self._stop(node)) for node in self._places]
        try:
            for number in range(probes):
                self._waiting = {}
                for node, places in self._places.items():
                    for output, place in places.items():
                        for stored, _ in _rounded(place) if place is not None else ():
                            self._waiting.setdefault(stored, set()).add((node, output))
                product = torch.stack([(g * _signs(g, generator)).sum() for g in gradients]).sum()
                if product.requires_grad:
                    product.backward(retain_graph=number + 1 < probes)
                for stored in list(self._slopes):
                    self._settle(stored)
        finally:
            for handle in handles:
                handle.remove()
        return {key: total / probes for key, total in self._sums.items()}

    def _stop(self, node: Any) -> Callable[[Sequence[Tensor | None]], tuple[None, ...]]:
        """Return a hook that takes what arrives at a node of the forward graph, and lets nothing pass.

        What arrives is ∂⟨g, v⟩/∂h through the saved copies of h alone: what would have come through later
        activations was stopped there.
        """

        def take(arriving: Sequence[Tensor | None]) -> tuple[None, ...]:
            for output, place in self._places[node].items():
                if place is not None:
                    if (slope := arriving[output]) is not None:
                        self._add(place, slope.detach())
                    for stored, _ in _rounded(place):
                        self._arrived(stored, (node, output))
            return (None,) * len(arriving)

        return take

    def _add(self, view: StoredView, slope: Tensor) -> None:
        """Add a slope to that of a rounded block; through a computation to those of its sources."""
        content, layout = view.stored.content, view.layout
        if isinstance(content, Codes):
            total = self._slopes.get(view.stored)
            if total is None:
                total = self._slopes[view.stored] = slope.new_zeros(content.count, dtype=torch.float32)
            _part(total, layout).add_(slope.sum_to_size(layout.kept))
        elif isinstance(content, Derived):
            whole = slope.new_zeros(content.count)
            _part(whole, layout).add_(slope.sum_to_size(layout.kept))
            for source, own in content.recipe.back(content.layout.view(whole)):
                self._add(source, own)

    def _arrived(self, stored: Stored, place: tuple[Any, int]) -> None:
        waiting = self._waiting[stored]
        waiting.discard(place)
        if not waiting and stored in self._slopes:
            self._settle(stored)

    def _settle(self, stored: Stored) -> None:
        """Add Σ_i D_i slope_i² of a tensor: D = r² / 6 in a group of range r, the mean over places."""
        slope, codes = self._slopes.pop(stored), stored.content
        assert isinstance(codes, Codes)
        squares = codes.grouping.sums(slope.square(), codes.bits)
        ranges = codes.step.float() * (2**codes.bits - 1)
        self._sums[stored.name] += float((squares * ranges.square()).sum() / 6)


def _rounded(view: StoredView) -> Iterator[tuple[Stored, Codes]]:
    """Yield the rounded blocks that a saved tensor consists of or is computed from."""
    content = view.stored.content
    if isinstance(content, Codes):
        yield view.stored, content
    elif isinstance(content, Derived):
        for source in content.recipe.views():
            yield from _rounded(source)


def _part(block: Tensor, layout: Layout) -> Tensor:
    return block.as_strided(layout.kept, layout.strides, layout.offset)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(like.device, like.dtype)


def gradient(loss: Tensor, model: nn.Module, create_graph: bool = False) -> list[Tensor]:
    """Return the gradient of the parameters that the loss depends on."""
    try:
        found = torch.autograd.grad(loss, trained(model), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        if create_graph or "does not require grad" not in str(error):
            raise
        raise ConfigurationError("loss_fn returned a loss that depends on no parameter that trains") from None
    return [g for g in found if g is not None]


def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the squared distance of two gradients."""
    return sum(float((a - b).double().square().sum()) for a, b in zip(one, other, strict=True))


def probed(
    gradients: Callable[[frozenset[str]], list[Tensor]], groups: Sequence[frozenset[str]], bits: int
) -> list[float]:
    """Return c of each group by brute force: ½ ‖g(r) - g(r')‖² / S(b), the group rounded anew in r'.

    Args:
        gradients: Group → the gradient in which the group is rounded with other random numbers.
        groups: Groups of tensors that are measured together.
        bits: The width in these passes.

    Source: Liu et al. 2022 (arXiv 2206.11357), algorithm 1.
    """
    base = gradients(frozenset())
    found = []
    for group in groups:
        other = gradients(group)
        found.append(distance(base, other) / 2 / noise(bits))
    return found


def like_groups(elements: Mapping[str, int]) -> list[dict[str, int]]:
    """Join tensors whose names differ in the numbers of layers only.

    Examples:
        >>> like_groups({"layer.0.act:gelu:0": 8, "layer.1.act:gelu:0": 8, "pooler:tanh:0": 2})
        [{'layer.0.act:gelu:0': 8, 'layer.1.act:gelu:0': 8}, {'pooler:tanh:0': 2}]
    """
    groups: dict[str, dict[str, int]] = {}
    for key, count in elements.items():
        module, rest = key.split(":", 1)
        groups.setdefault(re.sub(r"\b\d+\b", "*", module) + rest, {})[key] = count
    return list(groups.values())


def shares(total: float, elements: Mapping[str, int]) -> dict[str, float]:
    """Split a group's sensitivity over its tensors by their elements."""
    whole = sum(elements.values())
    return {key: total * n / whole for key, n in elements.items()}
