"""The adaptations of a model, by name; at most one of them acts."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from finetune_common.errors import ConfigurationError, shown
from parameter_efficient.attachment import Attachment
from parameter_efficient.configs import Config

__all__ = ["RECORD", "Record", "Records", "is_adapted", "record_of", "records_of", "refuse_compiled"]

RECORD = "_parameter_efficient"
"""The attribute of a model that holds its adaptations."""

Flag = tuple[nn.Parameter, bool]
"""A parameter, and its `requires_grad`."""


@dataclass
class Record:
    """One adaptation.

    Args:
        config: How the model was adapted.
        attachments: The changes, in order.
        base_flags: Every parameter of the base model, and whether it trained.
        merged: Whether the changes are in the weights now.
        adapted_flags: Every parameter of the adapted model when it was last detached, and whether it trained.
    """

    config: Config
    attachments: list[Attachment]
    base_flags: list[Flag]
    merged: bool = False
    adapted_flags: list[Flag] = field(default_factory=list[Flag])

    def detach(self, model: nn.Module) -> None:
        """Leave the model, which is then the base model again."""
        self.adapted_flags = [(p, p.requires_grad) for p in model.parameters()]
        for attachment in reversed(self.attachments):
            attachment.detach()
        for parameter, trains in self.base_flags:
            parameter.requires_grad_(trains)

    def reattach(self) -> None:
        """Return to the model."""
        for attachment in self.attachments:
            attachment.reattach()
        for parameter, trains in self.adapted_flags:
            parameter.requires_grad_(trains)


@dataclass
class Records:
    """The adaptations of a model.

    Args:
        by_name: All of them.
        active: Name of the one that acts; null for none.
    """

    by_name: dict[str, Record] = field(default_factory=dict[str, Record])
    active: str | None = None

    def named(self, name: str | None) -> Record:
        """Return the adaptation of this name; without a name, the active one.

        Raises:
            ConfigurationError: None has this name, or none is active.
        """
        names = ", ".join(map(repr, self.by_name))
        if name is None and self.active is None:
            raise ConfigurationError(
                f"no adaptation of this model is active: call activate(model, name) with one of {names}"
            )
        name = name or self.active or ""
        if name not in self.by_name:
            raise ConfigurationError(f"this model has no adaptation {shown(name)}: choose from {names}")
        return self.by_name[name]


def refuse_compiled(model: nn.Module) -> None:
    """Refuse what torch.compile returned: it would not notice modules and hooks that come or go."""
    if hasattr(model, "_orig_mod"):
        raise ConfigurationError(
            "this model is compiled: pass the model itself (model._orig_mod), and compile it afterwards"
        )


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is adapted, or is a layer that peft inserted."""
    return RECORD in vars(module) or hasattr(type(module), "adapter_layer_names")


def records_of(model: nn.Module) -> Records:
    """Return an adapted model's adaptations.

    Raises:
        ConfigurationError: The model is not adapted.
    """
    refuse_compiled(model)
    records = vars(model).get(RECORD)
    if records is None:
        raise ConfigurationError(
            f"this {type(model).__name__} is not adapted: call adapt(model, config) first"
        )
    return records


def record_of(model: nn.Module, name: str | None = None) -> Record:
    """Return the adaptation of this name; without a name, the active one.

    Raises:
        ConfigurationError: The model is not adapted, or has no adaptation of this name.
    """
    return records_of(model).named(name)
