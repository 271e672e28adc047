"""How a value is computed from others, and a block that is computed instead of being stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from activation_compression.blocks import Layout
from activation_compression.nodes import Node
from activation_compression.quantizer import Codes
from activation_compression.stored import Held, Kept, StoredView

__all__ = ["Derived", "Note", "Recipe", "note_of"]

COARSE = 4
"""Largest width at which the bias of a curved function matters beside the noise of rounding."""
CHUNK = 2**16
"""Elements that are corrected at a time: a cache holds them."""


@dataclass(frozen=True)
class Recipe:
    """How a value is computed from others.

    Attributes:
        operation: Name of the computation.
        compute: The values of the sources → the value.
        sources: The holders of these values.
        repeats: Whether it is the forward pass's own operation: exact sources then give its exact result.
        curved: Whether it is a smooth function f of its one source, element by element.
            Rounding x to x̂ in steps s biases such a function, E[f(x̂)] ≈ f(x) + f″(x) s² / 12. Where steps are
            coarse the bias is subtracted: 2 f(x̂) - (f(x̂ + d) + f(x̂ - d)) / 2 with d = s / √6.
    """

    operation: str
    compute: Callable[..., Tensor]
    sources: tuple[Held, ...]
    repeats: bool = True
    curved: bool = False
    is_value = True

    @classmethod
    def of_cast(cls, weight: Tensor, dtype: torch.dtype) -> Recipe:
        """Return how to compute the copy of a weight in another dtype."""

        def compute(x: Tensor) -> Tensor:
            return x.to(dtype)

        return cls("copy", compute, (Kept(weight),))

    @property
    def is_exact(self) -> bool:
        """Whether the value equals that of the forward pass bit for bit."""
        return self.repeats and all(source.is_exact for source in self.sources)

    @property
    def depth(self) -> int:
        """Longest chain of computations, this one included; views and copies do not count."""
        return (self.operation != "copy") + max((source.depth for source in self.sources), default=0)

    def open(self) -> Tensor:
        """Return the value."""
        opened = [source.open() for source in self.sources]
        value = self.compute(*opened)
        steps = _steps(self.sources[0]) if self.curved else None
        if steps is not None:
            rows = max(1, CHUNK * len(value) // value.numel())
            chunks = (torch.split(whole, rows) for whole in (value, opened[0], steps))
            for out, x, step in zip(*chunks, strict=True):
                d = (step / 6**0.5).to(x.dtype)
                out.mul_(2).sub_(self.compute(x + d) + self.compute(x - d), alpha=0.5)
        return value

    def use(self) -> None:
        """Count one more reader of each source."""
        for source in self.sources:
            source.use()

    def views(self) -> list[StoredView]:
        """Return the stored sources, including those of derived sources."""
        views: list[StoredView] = []
        for source in self.sources:
            views += source.views() if isinstance(source, Recipe) else []
            views += [source] if isinstance(source, StoredView) else []
        return views

    def back(self, slope: Tensor) -> list[tuple[StoredView, Tensor]]:
        """Return ∂⟨value, slope⟩/∂source for every stored source, including those of derived sources."""
        inputs = [source.open() for source in self.sources]
        for number, source in enumerate(self.sources):
            if not isinstance(source, Kept):  # of weights and numbers nobody asks
                value = inputs[number].detach()
                inputs[number] = value.requires_grad_(value.is_floating_point())
        differentiable = [value for value in inputs if value.requires_grad]
        if not differentiable:
            return []
        with torch.enable_grad():
            result = self.compute(*inputs)
            slopes = iter(
                torch.autograd.grad(result, differentiable, slope.to(result.dtype), allow_unused=True)
            )
        slopes_of_views: list[tuple[StoredView, Tensor]] = []
        for source, value in zip(self.sources, inputs, strict=True):
            slope_of_source = next(slopes) if value.requires_grad else None
            if slope_of_source is None:
                continue
            if isinstance(source, StoredView):
                slopes_of_views.append((source, slope_of_source))
            elif isinstance(source, Recipe):
                slopes_of_views += source.back(slope_of_source)
        return slopes_of_views


def _steps(source: Held) -> Tensor | None:
    """Return the step by which each element of a source was rounded; None if it is small or unknown."""
    if isinstance(source, StoredView) and isinstance(content := source.stored.content, Codes):
        return source.layout.view(content.steps()) if content.bits <= COARSE else None
    return None


class Derived:
    """The block of a tensor that is computed again; it takes no bytes.

    Args:
        recipe: How to compute the tensor.
        like: The tensor itself; the block has its strides.
    """

    bits = nbytes = 0

    def __init__(self, recipe: Recipe, like: Tensor) -> None:
        self.recipe = recipe
        self.layout = Layout(tuple(like.shape), tuple(like.shape), like.stride())
        self._dtype, self.count = like.dtype, like.numel()

    @property
    def source(self) -> str:
        """The computation, and the operations whose tensors it reads."""
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


@dataclass(frozen=True)
class Note:
    """What the forward pass notes at a node, since its backward formula does not need it.

    Attributes:
        version: Version of the node's result.
        sample: A few values of the result (`blocks.sample`).
        epsilon: ε of a layer normalisation.
    """

    version: int = 0
    sample: tuple[complex, ...] = ()
    epsilon: float | None = None

    def attach(self, node: Node) -> None:
        """Leave the note at a node."""
        node.metadata[Note] = self


def note_of(node: Node) -> Note:
    """Return the note at a node; an empty one if there is none."""
    return node.metadata.get(Note) or Note()
