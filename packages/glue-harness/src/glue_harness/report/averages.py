"""The average of a setting over the tasks of GLUE, if all of them were run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import GLUE_TASKS, TASKS
from glue_harness.report.aggregate import Row, label, varying_options

__all__ = ["Average", "averages"]

ELEVEN = [
    (task, metric)
    for task in ("cola", "rte", "mrpc", "stsb", "sst2", "qnli", "mnli", "qqp")
    for metric in TASKS[task].metrics
    if metric != "accuracy_mismatched"
]
"""AGNI's README gives the plain mean of these numbers."""


@dataclass(frozen=True)
class Average:
    """One setting over the tasks of GLUE.

    Attributes:
        model: The model.
        setting: What distinguishes it from the others, in words.
        glue: Mean over the nine tasks of the mean of each task's metrics; None without all of them.
        eleven: Mean of the eleven numbers of AGNI's README (no WNLI, no mismatched MNLI); None without all.
    """

    model: str
    setting: str
    glue: float | None
    eleven: float | None


def averages(rows: Sequence[Row], evaluation: str = "last") -> list[Average]:
    """Average settings over tasks, if all tasks were run.

    Args:
        rows: From `summarise`; rows with the same model and options belong together.
        evaluation: `last` or `best`.

    Returns:
        Settings with at least one of the two averages, the best first.
    """
    from finetune_common.metrics import glue_average

    together: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.task in GLUE_TASKS:
            key = row.model, json.dumps(row.options, sort_keys=True)
            together.setdefault(key, []).append(row)
    varying = varying_options([of_setting[0].options for of_setting in together.values()])
    averaged = []
    for (model, _), of_setting in together.items():
        scores = {
            row.task: {
                metric: value
                for metric, (value, _) in (row.metrics if evaluation == "last" else row.best).items()
            }
            for row in of_setting
        }
        try:
            glue = glue_average(scores)
        except ConfigurationError:
            glue = None
        eleven = [scores[task][metric] for task, metric in ELEVEN if metric in scores.get(task, {})]
        average = fmean(eleven) if len(eleven) == len(ELEVEN) else None
        if average is not None or glue is not None:
            averaged.append(Average(model, label(of_setting[0].options, varying), glue, average))
    return sorted(averaged, key=lambda a: -(a.glue if a.glue is not None else a.eleven or 0.0))
