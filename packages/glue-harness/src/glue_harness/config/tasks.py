"""A run's tasks: one, or several that share a body."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import TASKS, get_task

if TYPE_CHECKING:
    from glue_harness.config.fields import RunConfig

__all__ = ["check_sharded", "check_tasks", "task_of_own_rows"]


def task_of_own_rows(config: RunConfig) -> str:
    """Return which of several tasks has the user's rows: the one with an unknown name.

    Raises:
        ConfigurationError: No task has an unknown name, or more than one has.
    """
    unknown = [task for task in config.tasks if task not in TASKS]
    if not unknown:
        raise ConfigurationError(
            f"--task {config.task}: all are known tasks: add a new name for your own rows"
        )
    if len(unknown) > 1:
        raise ConfigurationError(
            f"--task {config.task}: {', '.join(unknown)} are unknown: only one task can have your own rows"
        )
    return unknown[0]


def check_tasks(config: RunConfig) -> None:
    """Refuse tasks that are unknown, named twice, or cannot be combined.

    Raises:
        ConfigurationError: One line that names the task and the remedy.
    """
    if not config.several:
        if config.task_sampling is not None:
            raise ConfigurationError(
                "--task-sampling is for several tasks: give --task rte,mrpc, or leave it out"
            )
        if not config.has_own_rows:
            get_task(config.task)
        return
    object.__setattr__(config, "task", ",".join(name.strip() for name in config.tasks))
    for name in config.tasks:
        if config.tasks.count(name) > 1:
            raise ConfigurationError(f"--task {config.task}: {name or 'nothing'} is named twice")
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigurationError(
                f"--task {config.task}: {name!r} cannot name one of several tasks: use letters, digits, -, _"
            )
        if not config.has_own_rows:
            get_task(name)
    if config.has_own_rows:
        task_of_own_rows(config)
    if config.metric is not None:
        raise ConfigurationError(
            f"--metric {config.metric}: several tasks are scored by their own metrics, and the mean is the "
            "primary one: leave --metric out"
        )


def check_sharded(config: RunConfig) -> None:
    """Refuse several tasks if parameters are sharded over processes.

    Raises:
        ConfigurationError: There are several tasks and shards.
    """
    if config.several:
        raise ConfigurationError(
            f"--task {config.task}: a model of several tasks cannot be sharded: leave --sharding out"
        )
