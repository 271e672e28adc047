"""A run's tasks: one, or several that share a body."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import TASKS, get_task

if TYPE_CHECKING:
    from glue_harness.config.fields import RunConfig

__all__ = ["check_sharded", "check_tasks", "own_name"]


def own_name(config: RunConfig) -> str:
    """Return which of several tasks has the user's rows: the one with an unknown name.

    Raises:
        ConfigurationError: None of them, or more than one.
    """
    unknown = [task for task in config.tasks if task not in TASKS]
    if len(unknown) != 1:
        answer = f"{', '.join(unknown)} are unknown" if unknown else "all are known"
        raise ConfigurationError(
            f"--task {config.task}: {answer}, and rows of one's own are one task's: give it a new name"
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
        if not config.own:
            get_task(config.task)
        return
    object.__setattr__(config, "task", ",".join(name.strip() for name in config.tasks))
    for name in config.tasks:
        if config.tasks.count(name) > 1:
            raise ConfigurationError(f"--task {config.task}: {name or 'nothing'} stands there twice")
        if not re.fullmatch(r"[\w-]+", name):
            raise ConfigurationError(
                f"--task {config.task}: {name!r} is no name among several: use letters, digits, - and _"
            )
        if not config.own:
            get_task(name)
    if config.own:
        own_name(config)
    if config.metric is not None:
        raise ConfigurationError(
            f"--metric {config.metric}: of several tasks each has its own, and their mean is the primary "
            "one: leave it out"
        )


def check_sharded(config: RunConfig) -> None:
    """Refuse several tasks if parameters are spread over processes.

    Raises:
        ConfigurationError: There are several tasks and shards.
    """
    if config.several:
        raise ConfigurationError(
            f"--task {config.task}: several tasks train replicas of the model: leave --sharding out"
        )
