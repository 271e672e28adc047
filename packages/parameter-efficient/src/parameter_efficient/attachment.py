"""Changes of a model that can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import ParamSpec, Protocol, TypedDict

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.blocks import width_out

__all__ = [
    "Attachment",
    "DeviceAndDtype",
    "InPlace",
    "Outside",
    "Place",
    "Removable",
    "Resident",
    "Tokens",
    "place_of",
    "place_of_new",
]

Place = tuple[nn.Module, str]
"""A parameter: the module that holds it, and its name there."""

Tokens = tuple[nn.Module, Sequence[int]]
"""A module that looks up tokens, and those of them whose values train."""

P = ParamSpec("P")


class DeviceAndDtype(TypedDict):
    """Keyword arguments for new tensors."""

    device: torch.device
    dtype: torch.dtype


class Removable(Protocol):
    """The handle of a hook."""

    def remove(self) -> None:
        """Stop acting."""
        ...


class Attachment:
    """One method's change of a model."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return what trains."""
        return ()

    def tokens(self) -> Iterable[Tokens]:
        """Return the modules in which only some tokens train: the probe has to look them up."""
        return ()

    def detach(self) -> None:
        """Undo the change: the model is restored bit for bit, and the trained values are kept here."""
        raise NotImplementedError

    def reattach(self) -> None:
        """Undo `detach`, bit for bit."""
        raise NotImplementedError

    def merge(self) -> None:
        """Fold the change into the model's own weights, or refuse with the reason."""
        raise NotImplementedError

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""


def place_of(*modules: nn.Module) -> DeviceAndDtype:
    """Return device and dtype for new parameters: those of the modules' first floating-point parameter."""
    for parameter in chain.from_iterable(module.parameters() for module in modules):
        if parameter.is_floating_point():
            return {"device": parameter.device, "dtype": parameter.dtype}
    raise ConfigurationError(f"{type(modules[-1]).__name__} has no floating-point parameter")


def _floating_place(module: nn.Module) -> DeviceAndDtype | None:
    """Return the same, or None for a module whose parameters are all quantised."""
    floating = any(parameter.is_floating_point() for parameter in module.parameters())
    return place_of(module) if floating else None


def place_of_new(dtype: str, *modules: nn.Module) -> DeviceAndDtype:
    """Return device and dtype for parameters that are added: at least float32, unless dtype is "model"."""
    place = place_of(*modules)
    if dtype != "model" and place["dtype"].itemsize < 4:
        place["dtype"] = torch.float32
    return place


class Outside:
    """A part that leaves the model for a while, and later takes over the model's mode, device and dtype.

    Args:
        part: The part that leaves now.
        neighbour: A module that stays.
    """

    def __init__(self, part: nn.Module, neighbour: nn.Module) -> None:
        self.part, self._neighbour = part, neighbour
        self._training, self._place = neighbour.training, _floating_place(neighbour)

    def catch_up(self) -> None:
        """Apply what has changed in the neighbour: training mode, device, dtype."""
        if self._neighbour.training != self._training:
            self.part.train(self._neighbour.training)
        before, now = self._place, _floating_place(self._neighbour)
        if now is not None and (before is None or now["device"] != before["device"]):
            self.part.to(device=now["device"])
        if now is not None and (before is None or now["dtype"] != before["dtype"]):
            self.part.to(dtype=now["dtype"])


class Resident(nn.Module, Attachment):
    """A new module that lives in a host module and acts through hooks on modules around it.

    Attributes:
        reason: Why it cannot be merged.
    """

    reason = ""

    def __init__(self) -> None:
        super().__init__()
        self._registrations: list[Callable[[], Removable]] = []
        self._handles: list[Removable] = []

    def settle(self, host: nn.Module, name: str) -> None:
        """Become a child of `host`, so that it moves and is saved with the model; hooks come afterwards."""
        if hasattr(host, name):
            raise ConfigurationError(
                f"{type(host).__name__} already has {name!r}: layers share it, or it has one of its own; "
                "choose other layers or targets, or LoRA"
            )
        host.add_module(name, self)
        self.train(host.training)
        self._home = [(host, name)]  # in a list, since an attribute would make the host a child of its child

    def act_through(self, register: Callable[P, Removable], *args: P.args, **kwargs: P.kwargs) -> None:
        """Act on other modules from now on, through the hook that `register(*args, **kwargs)` makes."""
        registration = partial(register, *args, **kwargs)
        self._registrations.append(registration)
        self._handles.append(registration())

    def detach(self) -> None:
        """Leave the host."""
        for handle in self._handles:
            handle.remove()
        [(host, name)] = self._home
        delattr(host, name)
        self._outside = Outside(self, host)

    def reattach(self) -> None:
        """Return to the host, in the mode, dtype and device that it has by then."""
        [(host, name)] = self._home
        self._outside.catch_up()
        host.add_module(name, self)
        self._handles = [register() for register in self._registrations]

    def merge(self) -> None:
        """Refuse: a module that acts between the weights cannot become part of them."""
        raise ConfigurationError(f"{type(self).__name__} cannot be merged: {self.reason}; keep it attached")


class InPlace(Attachment):
    """Parameters of the model itself that train; their first values are kept for `detach`.

    Args:
        places: Module and attribute of each parameter. A missing bias is made, of zeros.
    """

    def __init__(self, places: Iterable[Place]) -> None:
        self._first: list[tuple[nn.Module, str, Tensor | None]] = []
        self._trained: list[Tensor] = []
        for module, attribute in places:
            parameter = getattr(module, attribute)
            if parameter is None:
                zeros = torch.zeros(width_out(module), **place_of(module))
                setattr(module, attribute, nn.Parameter(zeros))
                self._first.append((module, attribute, None))
            else:
                self._first.append((module, attribute, parameter.detach().clone()))

    def places(self) -> list[Place]:
        """Return where each parameter is."""
        return [(module, attribute) for module, attribute, _ in self._first]

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return [getattr(module, attribute) for module, attribute, _ in self._first]

    def leave_out(self, modules: Iterable[nn.Module]) -> None:
        """Freeze the parameters of some modules, before anything has trained."""
        left_out = set(modules)
        for module, attribute in self.places():
            if module in left_out:
                getattr(module, attribute).requires_grad_(False)
        self._first = [entry for entry in self._first if entry[0] not in left_out]

    def changes(self) -> Iterator[tuple[Place, Tensor, Tensor]]:
        """Return, while detached, each parameter's place, first value and trained value."""
        for (module, attribute, first), trained in zip(self._first, self._trained, strict=True):
            if first is not None:
                yield (module, attribute), first, trained

    def detach(self) -> None:
        """Restore every parameter's first value."""
        for module, attribute, first in self._first:
            parameter = getattr(module, attribute)
            if first is None:
                self._trained.append(parameter)
                setattr(module, attribute, None)
            else:
                self._trained.append(parameter.detach().clone())
                parameter.data.copy_(first)
                parameter.grad = None

    def reattach(self) -> None:
        """Restore every parameter's trained value."""
        for (module, attribute, first), trained in zip(self._first, self._trained, strict=True):
            if first is None:
                trained.data = trained.data.to(**place_of(module))
                setattr(module, attribute, trained)
            else:
                getattr(module, attribute).data.copy_(trained)
        self._trained.clear()

    def merge(self) -> None:
        """Do nothing: the change is in the weights.

        Raises:
            ConfigurationError: A bias was made, for which the model's own format has no place.
        """
        made = [module for module, _, first in self._first if first is None]
        if made:
            raise ConfigurationError(
                f"{len(made)} biases cannot be merged (the first is of a {type(made[0]).__name__}): this "
                "adaptation made them, and save_pretrained would lose them; keep the adaptation attached"
            )
