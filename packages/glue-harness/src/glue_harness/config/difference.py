"""The first difference of two configurations, in one line."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_common.errors import shown

__all__ = ["difference"]


def difference(new: Mapping[str, object], old: Mapping[str, object], prefix: str = "") -> str | None:
    """Name the first setting in which two identities differ: `optimizer.lr was 0.2 and is now 0.1`."""
    for key in sorted({*new, *old}):
        now, before = new.get(key), old.get(key)
        if (
            isinstance(now, dict)
            and isinstance(before, dict)
            and (deeper := difference(now, before, f"{prefix}{key}."))
        ):
            return deeper
        if now != before:
            return f"{prefix}{key} was {shown(before)} and is now {shown(now)}"
    return None
