"""Take the held-out parts from the training rows, and choose the rows that score the run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_common.data import held_out
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task
from glue_harness.config.fields import RunConfig

__all__ = ["hold_out"]


def hold_out(config: RunConfig, task: Task, raw: Any, datasets: Any) -> tuple[Task, tuple[str, ...]]:
    """Take rows out of training, in place, if a run asks for it.

    Args:
        config: Names the parts and the evaluation sets. Rows of other parts are left out.
        task: The run's task.
        raw: Split → rows with texts.
        datasets: Split → the same rows as tokens.

    Returns:
        The task with the set that judges the run, and the additional sets, scored once at the end.

    Raises:
        ConfigurationError: Too few rows, or an official set that the task does not have.
    """
    if not config.hold_out:
        return task, ()
    assert isinstance(config.hold_out, dict)
    texts = list(zip(*(raw["train"][name] for name in task.columns), strict=True))
    left, parts = held_out(texts, config.hold_out)
    judges = tuple(config.evaluate_on or task.evaluation)
    for name in judges:
        if name not in parts and name not in task.evaluation:
            raise ConfigurationError(
                f"--evaluate-on {','.join(judges)}: {task.name} has no {name!r}: its evaluation sets are "
                f"{', '.join(task.evaluation)}"
            )
    for splits in (raw, datasets):
        rows = splits["train"]
        splits |= {name: rows.select(parts[name]) for name in judges if name in parts}
        splits["train"] = rows.select(left)
        for name in set(task.evaluation) - set(judges):
            del splits[name]
    return (_judged_by(task, judges[0]), judges[1:]) if config.evaluate_on else (task, ())


def _judged_by(task: Task, split: str) -> Task:
    """Return a task with one evaluation set, without the set's name in its metrics."""
    several = [name.removeprefix("validation") for name in task.evaluation if len(task.evaluation) > 1]

    def plain(metric: str) -> str:
        return next((metric.removesuffix(end) for end in several if metric.endswith(end)), metric)

    metrics = tuple(dict.fromkeys(map(plain, task.metrics)))
    return replace(task, evaluation=(split,), metrics=metrics, primary=plain(task.primary))
