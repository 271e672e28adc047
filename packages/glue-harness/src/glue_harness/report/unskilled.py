"""The score of a model that has learned nothing, for comparison in charts."""

from __future__ import annotations

from finetune_common.aliases import JsonObject
from finetune_common.tasks import TASKS

__all__ = ["without_skill"]

ZERO = ("matthews_correlation", "pearson", "spearmanr")
"""Metrics that are 0 if predictions do not depend on the labels."""


def without_skill(metric: str, result: JsonObject) -> tuple[float, str] | None:
    """Return the score of a model that has learned nothing, and its name.

    The share of the largest class if the classes of the evaluated rows were counted; the chance of a guess if
    only the number of classes is known; 0 for correlations.

    Args:
        metric: The metric.
        result: A run's `result.json`.

    Returns:
        The score and its name; None for other metrics, or if the classes are not known.

    Examples:
        >>> without_skill("accuracy", {"task": "sst2"})
        (0.5, 'guessing')
        >>> without_skill("matthews_correlation", {"task": "cola"})
        (0.0, 'no correlation')
        >>> counted = {"no": {"rows": 30}, "yes": {"rows": 10}}
        >>> of_rows = {"validation": {"classes": counted, "confusion": [[30, 0], [10, 0]]}}
        >>> without_skill("accuracy", {"task": "mine", "classes": of_rows})
        (0.75, 'always the largest class')
    """
    if metric in ZERO:
        return 0.0, "no correlation"
    if metric != "accuracy":
        return None
    for counted in (result.get("classes") or {}).values():
        if "confusion" not in counted:  # rows have several labels
            return None
        rows = [counts["rows"] for counts in counted["classes"].values()]
        return (max(rows) / sum(rows), "always the largest class") if sum(rows) else None
    task = TASKS.get(result["task"])
    return (1 / len(task.labels), "guessing") if task and task.kind == "classes" else None
