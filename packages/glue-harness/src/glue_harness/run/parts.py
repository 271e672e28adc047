"""Reading a result: whether its rows are the user's, what scored it, and the part of one of several tasks."""

from __future__ import annotations

import json

from finetune_common.aliases import JsonObject

__all__ = ["has_own_rows", "judge_of", "result_of_task"]


def has_own_rows(result: JsonObject) -> bool:
    """Say whether a result is from the user's rows; earlier versions described only these."""
    data = result.get("data") or {}
    return bool(data.get("own", data.get("schema")))


def judge_of(result: JsonObject) -> str:
    """Return what a run's score is a score of: its metric, and what decides on which rows it is computed.

    Scores can be compared where this is equal.

    Examples:
        >>> run = {"primary": "accuracy", "settings": {"hold_out": {"choose": 5}, "evaluate_on": ["choose"]}}
        >>> judge_of(run)
        '["accuracy", "choose", {"choose": 5}, null, null]'
    """
    settings = result["settings"]
    part, parts = (settings.get("evaluate_on") or [""])[0], settings.get("hold_out") or {}
    rows = (parts if part in parts else None, settings.get("max_eval_samples"), settings.get("rows"))
    return json.dumps([result["primary"], part, *rows])


def result_of_task(result: JsonObject, task: str) -> JsonObject:
    """Return the result of one of several tasks in the form of a separate run."""
    return {**result, **result["tasks"][task], "task": task}
