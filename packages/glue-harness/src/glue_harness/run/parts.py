"""Reading a result: whether its rows are the user's, and the part of one of several tasks."""

from __future__ import annotations

from finetune_common.aliases import JsonObject

__all__ = ["has_own_rows", "result_of_task"]


def has_own_rows(result: JsonObject) -> bool:
    """Say whether a result is from the user's rows; earlier versions described only these."""
    data = result.get("data") or {}
    return bool(data.get("own", data.get("schema")))


def result_of_task(result: JsonObject, task: str) -> JsonObject:
    """Return the result of one of several tasks in the form of a separate run."""
    return {**result, **result["tasks"][task], "task": task}
