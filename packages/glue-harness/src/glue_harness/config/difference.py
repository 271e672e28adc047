"""The first difference of two configurations, in one line."""

from __future__ import annotations

from typing import Any

__all__ = ["difference"]


def difference(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> str | None:
    """Name the first setting in which two identities differ: `optimizer.lr: 0.1 here, 0.2 there`."""
    for key in sorted({*ours, *theirs}):
        here, there = ours.get(key), theirs.get(key)
        if (
            isinstance(here, dict)
            and isinstance(there, dict)
            and (deeper := difference(here, there, f"{prefix}{key}."))
        ):
            return deeper
        if here != there:
            return f"{prefix}{key} is {here!r} here and {there!r} there"
    return None
