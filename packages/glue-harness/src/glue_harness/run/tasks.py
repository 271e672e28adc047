"""A run's task, from its configuration, from a finished run's files, or from a model alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from finetune_common.metrics import metrics_of
from finetune_common.tasks import TASKS, Task, get_task
from glue_harness.config.fields import RunConfig
from glue_harness.config.own_rows import own_rows

__all__ = ["task_of", "task_of_finished_run", "task_of_model"]


def task_of(config: RunConfig) -> Task:
    """Return a run's task; for the user's rows it is inferred from them."""
    if config.has_own_rows:
        return own_rows(config.as_dict()).task
    task = get_task(config.task)
    if config.metric is None or config.metric == task.primary:
        return task
    if len(task.evaluation) > 1:
        raise ConfigurationError(
            f"--metric {config.metric}: {task.name} is evaluated on {len(task.evaluation)} sets, with fixed "
            "metrics: leave --metric out"
        )
    return replace(task, metrics=metrics_of(task, config.metric), primary=config.metric)


def task_of_finished_run(config: RunConfig, result: JsonObject, described: Any) -> Task:
    """Return a finished run's task from its files, without reading its rows.

    Args:
        config: The run, of one task.
        result: The part of its `result.json` for this task.
        described: The configuration of its model, with the labels' names.
    """
    if not config.has_own_rows and config.metric is None:
        return get_task(config.task)
    scored_by: Any = {"metrics": tuple(result["metrics"]["last"]), "primary": result["primary"]}
    if config.task in TASKS:
        return replace(TASKS[config.task], evaluation=("validation",), **scored_by)
    names = () if described.problem_type == "regression" else tuple(dict(described.id2label).values())
    schema = (result.get("data") or {}).get("schema") or {}
    return Task(
        config.task,
        tuple(result["columns"]),
        names,
        rows={},
        label_range=(-math.inf, math.inf),
        official_label=schema.get("label_column", "label"),
        several=described.problem_type == "multi_label_classification",
        **scored_by,
    )


def task_of_model(name: str, described: Any) -> Task:
    """Return the task of a model, from its configuration alone.

    Args:
        name: Its name.
        described: The configuration.
    """
    several = described.problem_type == "multi_label_classification"
    if described.problem_type == "regression" or (described.num_labels == 1 and not several):
        return Task(name, (), (), ("pearson", "spearmanr"), "pearson", {}, label_range=(-math.inf, math.inf))
    labels = tuple(str(label) for _, label in sorted(described.id2label.items()))
    task = Task(name, (), labels, (), "", {}, several=several)
    metrics = metrics_of(task)
    return replace(task, metrics=metrics, primary=metrics[0])
