"""What a method leaves in a model, in a form that can be undone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError

__all__ = ["Attachment", "InPlace", "Resident", "place_of"]


class Attachment:
    """One method's change of a model."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what trains."""
        return ()

    def detach(self) -> None:
        """Undo the change: the model is what it was, bit for bit."""
        raise NotImplementedError

    def merge(self) -> None:
        """Fold the change into the model's own weights, or refuse with the reason."""
        raise NotImplementedError

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""


def place_of(layer: nn.Module) -> dict[str, Any]:
    """Return device and dtype for new parameters in a layer: those of its first floating-point parameter."""
    for parameter in layer.parameters():
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    raise ConfigurationError(f"{type(layer).__name__} has no floating-point parameter")


class Resident(nn.Module, Attachment):
    """A module of its own that lives in a host module and acts through hooks on modules around it.

    Args:
        host: Module whose child it becomes, so that it moves and is saved with the model.
        name: Name of the child.
        reason: Why it cannot be merged.
    """

    reason = ""

    def __init__(self) -> None:
        super().__init__()
        self._undo: list[Any] = []

    def settle(self, host: nn.Module, name: str, *handles: Any) -> None:
        """Become a child of `host`; `handles` have `remove()`."""
        if hasattr(host, name):
            raise ConfigurationError(
                f"{type(host).__name__} already has {name!r}: remove the adaptation first"
            )
        host.add_module(name, self)
        self.train(host.training)
        self._home = [(host, name)]  # in a list, so that the host is no child of its child
        self._undo = list(handles)

    def detach(self) -> None:
        """Leave the host."""
        for handle in self._undo:
            handle.remove()
        [(host, name)] = self._home
        delattr(host, name)

    def merge(self) -> None:
        """Refuse: what acts between the weights cannot become part of them."""
        raise ConfigurationError(f"{type(self).__name__} cannot be merged: {self.reason}; keep it attached")


class InPlace(Attachment):
    """Parameters of the model itself that train; their first values are kept for the way back.

    Args:
        where: Module and attribute of each parameter. A bias that is not there is made, of zeros.
    """

    def __init__(self, where: Iterable[tuple[nn.Module, str]]) -> None:
        self._first: list[tuple[nn.Module, str, Tensor | None]] = []
        for module, attribute in where:
            parameter = getattr(module, attribute)
            if parameter is None:
                weight: Any = module.weight
                zeros = torch.zeros(weight.shape[0], device=weight.device, dtype=weight.dtype)
                setattr(module, attribute, nn.Parameter(zeros))
                self._first.append((module, attribute, None))
            else:
                self._first.append((module, attribute, parameter.detach().clone()))

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return [getattr(module, attribute) for module, attribute, _ in self._first]

    def detach(self) -> None:
        """Give every parameter its first value back."""
        for module, attribute, first in self._first:
            if first is None:
                setattr(module, attribute, None)
            else:
                getattr(module, attribute).data.copy_(first)
                getattr(module, attribute).grad = None

    def merge(self) -> None:
        """Nothing is to be done: the change is in the weights."""
