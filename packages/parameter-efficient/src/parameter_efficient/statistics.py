"""Buffers that training moves, such as the running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from parameter_efficient.attachment import Attachment, Place
from parameter_efficient.forward import valueless

__all__ = ["Statistics"]


class Statistics(Attachment):
    """A model's buffers that training may move: they are saved once they did, and restored.

    These are the buffers of its `state_dict` that hold floating-point numbers, or a single number (a
    counter): other integers are indices or packed weights.

    Args:
        model: The model, before anything else is changed; one without values has none to keep.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list[nn.Module]() if valueless(model) else [*model.modules()]
        self._first: dict[Place, Tensor] = {
            (module, name): buffer.detach().clone()
            for module in modules
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
            and (buffer.is_floating_point() or buffer.ndim == 0)
        }
        self._moved: dict[Place, Tensor] = {}

    def moved(self) -> dict[Place, Tensor]:
        """Return the buffers that are not what they were, by module and name."""
        now = {(module, name): getattr(module, name) for module, name in self._first}
        return {place: now[place] for place, first in self._first.items() if not _same(first, now[place])}

    def changes(self) -> Iterator[tuple[Place, Tensor, Tensor]]:
        """Return, while detached, each moved buffer's place, first value and last value."""
        for place, value in self._moved.items():
            yield place, self._first[place], value

    def detach(self) -> None:
        """Restore every buffer's first value."""
        self._moved = {place: value.clone() for place, value in self.moved().items()}
        self._write({place: self._first[place] for place in self._moved})

    def reattach(self) -> None:
        """Restore the values to which they had moved."""
        self._write(self._moved)

    def _write(self, values: dict[Place, Tensor]) -> None:
        with torch.no_grad():
            for (module, name), value in values.items():
                getattr(module, name).copy_(value)

    def merge(self) -> None:
        """Do nothing: the model's own format holds buffers."""


def _same(first: Tensor, now: Tensor) -> bool:
    """Return whether a buffer did not move, though it may have another dtype or device by now."""
    return now.is_meta or torch.equal(first.to(now), now)
