"""What is known about an adapted model: its adaptations by name, of which one at most acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from finetune_common.errors import ConfigurationError, shown
from parameter_efficient.attachment import Attachment
from parameter_efficient.configs import Config

__all__ = ["RECORD", "Record", "Records", "is_adapted", "record_of", "records_of"]

RECORD = "_parameter_efficient"


@dataclass
class Record:
    """One adaptation.

    Args:
        config: How the model was adapted.
        attachments: What was changed, in order.
        flags: Every parameter that the model had, and whether it trained.
        merged: Whether the changes are in the weights now.
        away: While it does not act: every parameter of the model with it, and whether it trains.
    """

    config: Config
    attachments: list[Attachment]
    flags: list[tuple[nn.Parameter, bool]]
    merged: bool = False
    away: list[tuple[nn.Parameter, bool]] = field(default_factory=list)

    def detach(self, model: nn.Module) -> None:
        """Leave the model, which is then what it was."""
        self.away = [(p, p.requires_grad) for p in model.parameters()]
        for attachment in reversed(self.attachments):
            attachment.detach()
        for parameter, flag in self.flags:
            parameter.requires_grad_(flag)

    def reattach(self) -> None:
        """Come back to the model."""
        for attachment in self.attachments:
            attachment.reattach()
        for parameter, flag in self.away:
            parameter.requires_grad_(flag)


@dataclass
class Records:
    """The adaptations of a model.

    Args:
        by_name: All of them.
        active: Name of the one that acts; null for none.
    """

    by_name: dict[str, Record] = field(default_factory=dict)
    active: str | None = None

    def named(self, name: str | None) -> Record:
        """Return one of them: the active one without a name.

        Raises:
            ConfigurationError: There is none of this name, or none is active.
        """
        names = ", ".join(map(repr, self.by_name))
        if name is None and self.active is None:
            raise ConfigurationError(
                f"no adaptation of this model is active: activate(model, name), of {names}"
            )
        name = name or self.active or ""
        if name not in self.by_name:
            raise ConfigurationError(f"this model has no adaptation {shown(name)}: choose from {names}")
        return self.by_name[name]


def is_adapted(module: nn.Module) -> bool:
    """Return whether a module is adapted itself, or a layer that peft put there."""
    return RECORD in vars(module) or hasattr(type(module), "adapter_layer_names")


def records_of(model: nn.Module) -> Records:
    """Return an adapted model's adaptations.

    Raises:
        ConfigurationError: The model is not adapted.
    """
    records: Any = vars(model).get(RECORD)
    if records is None:
        raise ConfigurationError(
            f"this {type(model).__name__} is not adapted: call adapt(model, config) first"
        )
    return records


def record_of(model: nn.Module, name: str | None = None) -> Record:
    """Return one adaptation, the active one without a name.

    Raises:
        ConfigurationError: The model is not adapted, or has none of this name.
    """
    return records_of(model).named(name)
