"""Several choices for the activation slot on one line: `none,checkpoint,compress:L2`."""

from __future__ import annotations

from dataclasses import asdict

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from finetune_common.slots import find

__all__ = ["ALIASES", "read_choices"]

ALIASES = {"swap": "offload:swap", "compress+swap": "offload:L4bit-swap"}
"""Name in published tables → method and level."""


def read_choices(text: str) -> dict[str, JsonObject]:
    """Read names of activation methods; a level follows after a colon if the method has levels.

    Args:
        text: Comma-separated.

    Returns:
        Written name → the slot's choice, with all its options.

    Raises:
        ConfigurationError: An unknown method, or a level for a method without levels.

    Examples:
        >>> read_choices("none")
        {'none': {'name': 'none'}}
        >>> read_choices("none:L1")
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: activation 'none' has no levels: leave ':L1' out
    """
    choices = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, level = ALIASES.get(part, part).partition(":")
        method = find("activation", name)
        if colon and not hasattr(method.Options(), "level"):
            raise ConfigurationError(f"activation {name!r} has no levels: leave ':{level}' out")
        options = method.Options(level=level) if colon else method.Options()
        choices[part] = {"name": name, **asdict(options)}
    if not choices:
        raise ConfigurationError(
            "--compare names no activation method: give a list, e.g. none,checkpoint,compress:L1"
        )
    return choices
