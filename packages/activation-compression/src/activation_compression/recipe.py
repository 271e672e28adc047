"""A computation of a value from others, and a tensor that is held by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activation_compression.blocks import Layout
from activation_compression.formulas import Node
from activation_compression.quantizer import Codes
from activation_compression.stored import Held, Kept, StoredView

__all__ = ["Derived", "Recipe", "note", "noted"]

NOTES = "activation_compression"
"""Where a node's `metadata` keeps what this package knows of it."""

COARSE = 4
"""Bits up to which the curvature of a function matters beside what rounding moves it at random."""
CHUNK = 2**16
"""Elements that a cache holds while something is taken off them."""


@dataclass(frozen=True)
class Recipe:
    """A computation of a value from others.

    Attributes:
        operation: Its name.
        compute: The values of the sources → the value.
        sources: What holds them.
        repeats: Whether it is the very operation of the forward pass: exact sources give its exact result.
        curved: Whether it is a smooth function f of its one source, element by element.
            Rounding x to x̂ by steps s shifts a curved one in the mean, E[f(x̂)] ≈ f(x) + f″(x) s² / 12. Where
            steps are coarse that is taken off: 2 f(x̂) - (f(x̂ + d) + f(x̂ - d)) / 2 with d = s / √6.
    """

    operation: str
    compute: Callable[..., Tensor]
    sources: tuple[Held, ...]
    repeats: bool = True
    curved: bool = False
    is_value = True

    @classmethod
    def of_cast(cls, weight: Tensor, dtype: torch.dtype) -> Recipe:
        """Return how to make the copy of a weight in another dtype."""
        return cls("copy", lambda x: x.to(dtype), (Kept(weight),))

    @property
    def is_exact(self) -> bool:
        """Whether the value is that of the forward pass bit for bit."""
        return self.repeats and all(source.is_exact for source in self.sources)

    @property
    def depth(self) -> int:
        """Computations behind it, itself included; a view or a copy is none."""
        return (self.operation != "copy") + max((source.depth for source in self.sources), default=0)

    def open(self) -> Tensor:
        """Return the value."""
        opened = [source.open() for source in self.sources]
        value = self.compute(*opened)
        steps = _steps(self.sources[0]) if self.curved else None
        if steps is not None:
            rows = max(1, CHUNK * len(value) // value.numel())
            for out, x, step in zip(value.split(rows), opened[0].split(rows), steps.split(rows), strict=True):
                d = (step / 6**0.5).to(x.dtype)
                out.mul_(2).sub_(self.compute(x + d) + self.compute(x - d), alpha=0.5)
        return value

    def use(self) -> None:
        """Note that one more will open the sources in each backward pass."""
        for source in self.sources:
            source.use()

    def views(self) -> list[StoredView]:
        """Return the stored sources, also those of sources."""
        views: list[StoredView] = []
        for source in self.sources:
            views += source.views() if isinstance(source, Recipe) else []
            views += [source] if isinstance(source, StoredView) else []
        return views

    def back(self, slope: Tensor) -> list[tuple[StoredView, Tensor]]:
        """Return ∂⟨value, slope⟩/∂source for every stored source, those of derived sources too."""
        values = [source.open().detach() for source in self.sources]
        with torch.enable_grad():
            inputs = [value.requires_grad_(value.is_floating_point()) for value in values]
            asked = [value for value in inputs if value.requires_grad]
            made = self.compute(*inputs)
            slopes = iter(torch.autograd.grad(made, asked, slope.to(made.dtype), allow_unused=True))
        slopes_of: list[tuple[StoredView, Tensor]] = []
        for source, value in zip(self.sources, inputs, strict=True):
            slope_of_view = next(slopes) if value.requires_grad else None
            if slope_of_view is None:
                continue
            if isinstance(source, StoredView):
                slopes_of.append((source, slope_of_view))
            elif isinstance(source, Recipe):
                slopes_of += source.back(slope_of_view)
        return slopes_of


def _steps(source: Held) -> Tensor | None:
    """Return how far apart the values are between which each element of a source was rounded.

    None where that is little, or not known.
    """
    if isinstance(source, StoredView) and isinstance(content := source.stored.content, Codes):
        return source.layout.view(content.steps()) if content.bits <= COARSE else None
    return None


class Derived:
    """The block of a tensor that is computed again; it takes no byte.

    Args:
        recipe: Computes the tensor.
        like: The tensor, whose strides the block has.
    """

    bits = nbytes = 0

    def __init__(self, recipe: Recipe, like: Tensor) -> None:
        self.recipe = recipe
        self.layout = Layout(tuple(like.shape), tuple(like.shape), like.stride())
        self._dtype, self.count = like.dtype, like.numel()

    @property
    def source(self) -> str:
        """The operation, and whose tensors it reads."""
        names = dict.fromkeys(view.stored.name.rpartition(":")[0] for view in self.recipe.views())
        return f"{self.recipe.operation} of {', '.join(names)}" if names else self.recipe.operation

    def unpack(self) -> Tensor:
        """Return the block."""
        value = self.recipe.open()
        if tuple(value.stride()) != self.layout.strides or value.dtype != self._dtype:
            block = value.new_empty(self.count, dtype=self._dtype)
            self.layout.view(block).copy_(value)
            return block
        return value.as_strided((self.count,), (1,), value.storage_offset())


def note(node: Node, **facts: Any) -> None:
    """Let a node know what its backward formula does not need, such as ε of a normalisation."""
    node.metadata.setdefault(NOTES, {}).update(facts)


def noted(node: Node, fact: str, otherwise: Any = None) -> Any:
    """Return what a node was let know."""
    return node.metadata.get(NOTES, {}).get(fact, otherwise)
