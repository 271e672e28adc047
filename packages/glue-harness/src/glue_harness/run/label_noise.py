"""Wrong training labels, to test how well a method tolerates them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["with_false_labels"]


def with_false_labels(rows: Dataset, task: Task, share: float, seed: int) -> Dataset:
    """Return rows of which a share gets a wrong class, each with equal probability.

    Args:
        rows: Tokenised, with `labels`.
        task: One of classes.
        share: Share of the rows, above 0 and at most 1; rounded to whole rows.
        seed: Decides which rows, and the class each gets.

    Raises:
        ConfigurationError: A task of scores, or of several labels per row, or a share of less than a row.
    """
    if task.regression or task.several:
        raise ConfigurationError(
            f"label_noise={share}: {task.name} has no single class per row: leave it out"
        )
    labels = np.asarray(rows["labels"])
    drawn = np.random.default_rng(seed)
    false = drawn.permutation(len(labels))[: round(share * len(labels))]
    if not len(false):
        raise ConfigurationError(
            f"label_noise={share}: of {len(labels):,} rows that is none: give {1 / len(labels):.2g} or more"
        )
    labels[false] = (labels[false] + drawn.integers(1, task.num_labels, size=len(false))) % task.num_labels
    feature = rows.features["labels"]
    return rows.remove_columns("labels").add_column("labels", labels.tolist(), feature=feature)
