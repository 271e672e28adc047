"""The rows of a run: of one task, or of several trained together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
from transformers import PreTrainedTokenizerBase

from finetune_common.aliases import JsonObject, StateDict
from finetune_common.data import Schema, fingerprint
from finetune_common.tasks import Task
from glue_harness.config.fields import RunConfig
from glue_harness.config.own_rows import own_rows
from glue_harness.run.plan import Data, load_rows

__all__ = ["MEAN", "Mixture", "content_of", "load_data", "mean_of", "task_of_several"]

MEAN = "mean"
"""The primary metric of several tasks: the mean of their own primary metrics."""


def load_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Data | Mixture:
    """Return the tokenised rows of a run's task, or of each of its tasks."""
    if not config.several:
        return Data.load(config, tokenizer)
    parts = {name: Data.load(config.for_task(name), tokenizer) for name in config.tasks}
    for name, part in parts.items():
        part.marks = {"task": name}
    return Mixture(parts)


def task_of_several(tasks: Mapping[str, Task]) -> Task:
    """Return the combined task by which a run of several tasks is judged.

    Examples:
        >>> from finetune_common.tasks import get_task
        >>> both = task_of_several({name: get_task(name) for name in ("rte", "stsb")})
        >>> both.name, both.metrics
        ('rte,stsb', ('mean', 'rte.accuracy', 'stsb.pearson', 'stsb.spearmanr'))
    """
    metrics = (f"{name}.{metric}" for name, task in tasks.items() for metric in task.metrics)
    return Task(",".join(tasks), (), (), (MEAN, *metrics), MEAN, {})


def content_of(config: RunConfig) -> JsonObject | None:
    """Return the identity of a run's rows as they are in files now; None without files."""
    if not config.has_own_rows and config.data_dir is None:
        return None
    if not config.several:
        return _content(config)
    return joined({name: _content(config.for_task(name)) for name in config.tasks})


def _content(config: RunConfig) -> JsonObject:
    return own_rows(config.as_dict()).content() if config.has_own_rows else fingerprint(*load_rows(config))


def joined(contents: Mapping[str, JsonObject]) -> JsonObject:
    """Return the identity of the rows of several tasks, from the identity of each task's rows."""
    return {
        "labels": {name: content["labels"] for name, content in contents.items()},
        "splits": {
            f"{name}.{split}": digest
            for name, content in contents.items()
            for split, digest in content["splits"].items()
        },
    }


def mean_of(tasks: Mapping[str, Task], metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of several tasks together: their mean, and each as `task.metric`.

    Args:
        tasks: By name.
        metrics: Task → metric → value.
    """
    mean = fmean(metrics[name][task.primary] for name, task in tasks.items())
    return {MEAN: mean} | {
        f"{name}.{metric}": value for name, scores in metrics.items() for metric, value in scores.items()
    }


@dataclass
class Mixture:
    """The tokenised rows of several tasks; training rows are numbered across all tasks.

    Attributes:
        parts: Task → its rows, in the order of the run's tasks.
        task: The combined task that judges them.
    """

    parts: dict[str, Data]
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        self.task = task_of_several(self.tasks)
        self._begins = np.cumsum([0, *(len(part.lengths["train"]) for part in self.parts.values())])

    @property
    def tasks(self) -> dict[str, Task]:
        """The tasks by name."""
        return {name: part.task for name, part in self.parts.items()}

    @property
    def training_rows(self) -> int:
        """The number of training rows of all tasks."""
        return int(self._begins[-1])

    @property
    def training_lengths(self) -> dict[str, np.ndarray]:
        """Task → tokens of each of its training rows."""
        return {name: part.lengths["train"] for name, part in self.parts.items()}

    @property
    def lengths(self) -> dict[str, np.ndarray]:
        """`task.split` → tokens of each row."""
        return {
            f"{name}.{split}": lengths
            for name, part in self.parts.items()
            for split, lengths in part.lengths.items()
        }

    @property
    def content(self) -> JsonObject:
        """The identity of the rows."""
        return joined({name: part.content for name, part in self.parts.items()})

    @property
    def schemas(self) -> list[Schema]:
        """How the rows of each task were read."""
        return [schema for part in self.parts.values() for schema in part.schemas]

    @property
    def record(self) -> JsonObject:
        """A run's description of its rows, as plain data."""
        has_own_rows = any(part.has_own_rows for part in self.parts.values())
        return {"content": self.content, "schema": None, "own": has_own_rows}

    def loader(self, split: str, batches: list[list[int]], num_workers: int = 0) -> Iterator[StateDict]:
        """Yield these batches, each with rows of one task and that task's name.

        Args:
            split: `train`; every task evaluates its own rows.
            batches: Rows, numbered across all tasks.
            num_workers: Processes that prepare batches of one task.
        """
        owners = np.searchsorted(self._begins, [batch[0] for batch in batches], side="right") - 1
        loaders: list[Iterator[StateDict]] = []
        for number, part in enumerate(self.parts.values()):
            begin = int(self._begins[number])
            part_batches = [
                [row - begin for row in batch]
                for batch, owner in zip(batches, owners, strict=True)
                if owner == number
            ]
            loaders.append(iter(part.loader(split, part_batches, num_workers)))
        for owner in owners:
            yield next(loaders[owner])
