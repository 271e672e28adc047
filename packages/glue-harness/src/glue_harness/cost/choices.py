"""Several choices for the activation slot on one line: `none,checkpoint,compress:L2`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from finetune_common.errors import ConfigurationError
from finetune_common.slots import find

__all__ = ["SHORT", "read_choices"]

SHORT = {"swap": "offload:swap", "compress+swap": "offload:L4bit-swap"}
"""What the tables of the literature call it → method and level."""


def read_choices(text: str) -> dict[str, dict[str, Any]]:
    """Read names of activation methods, each with a level behind a colon where it has levels.

    Args:
        text: Comma-separated.

    Returns:
        What was written → the choice for the slot, with all its options.

    Raises:
        ConfigurationError: No such method, or one without levels that is given one.

    Examples:
        >>> read_choices("none")
        {'none': {'name': 'none'}}
        >>> read_choices("none:L1")
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: activation 'none' has no levels: leave ':L1' out
    """
    choices = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, level = SHORT.get(part, part).partition(":")
        method = find("activation", name)
        if colon and not hasattr(method.Options(), "level"):
            raise ConfigurationError(f"activation {name!r} has no levels: leave ':{level}' out")
        options = method.Options(level=level) if colon else method.Options()
        choices[part] = {"name": name, **asdict(options)}
    if not choices:
        raise ConfigurationError(
            "no activation method is named: give a list such as none,checkpoint,compress:L1"
        )
    return choices
