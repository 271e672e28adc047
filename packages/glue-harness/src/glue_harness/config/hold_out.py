"""The options `hold_out` and `evaluate_on`, which take rows out of training to evaluate on them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from finetune_common.errors import ConfigurationError, check_number

__all__ = ["read_hold_out"]

OFFICIAL = ("train", "validation", "test")
"""Beginnings of the names of official sets."""


def read_hold_out(
    hold_out: Mapping[str, int] | str | None, evaluate_on: list[str] | str | None
) -> tuple[dict[str, int] | None, list[str] | None]:
    """Return the parts of a hold-out with their rows, and the names of the evaluation sets.

    Args:
        hold_out: `choose=5000,score=10000`, or a mapping.
        evaluate_on: Names with commas between them, or a list.

    Raises:
        ConfigurationError: A part without a unique name or a number of rows, or only one of the two options.

    Examples:
        >>> read_hold_out("choose=5000,score=10000", "score,validation")
        ({'choose': 5000, 'score': 10000}, ['score', 'validation'])
    """
    names = evaluate_on.split(",") if isinstance(evaluate_on, str) else list(evaluate_on or [])
    names = [name.strip() for name in names]
    if not hold_out:
        if names:
            raise ConfigurationError(
                f"--evaluate-on {','.join(names)}: nothing is held out: give --hold-out choose=5000 too"
            )
        return None, None
    parts = _parts(hold_out) if isinstance(hold_out, str) else dict(hold_out)
    for name, rows in parts.items():
        if not re.fullmatch(r"[a-z][a-z_]*", name) or name.startswith(OFFICIAL):
            raise ConfigurationError(
                f"--hold-out {name}={rows}: {name!r} cannot name a part: use lower-case letters, and begin "
                f"with none of {', '.join(OFFICIAL)}"
            )
        check_number(f"hold_out.{name}", rows, at_least=1)
    for name in names:
        if name not in parts and not name.startswith("validation"):
            raise ConfigurationError(
                f"--evaluate-on {','.join(names)}: {name!r} is not held out: use {', '.join(parts)}, or the "
                "task's own set (validation) after one of them"
            )
        if names.count(name) > 1:
            raise ConfigurationError(f"--evaluate-on {','.join(names)}: {name} is named twice")
    return parts, names or None


def _parts(text: str) -> dict[str, int]:
    parts: dict[str, int] = {}
    for part in text.split(","):
        name, _, rows = part.partition("=")
        if not rows.strip().isdecimal() or name.strip() in parts:
            raise ConfigurationError(
                f"--hold-out {text}: {part.strip()!r} is not NAME=ROWS, or its name is used twice: write "
                "choose=5000,score=10000"
            )
        parts[name.strip()] = int(rows)
    return parts
