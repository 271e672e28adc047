"""The schema of a known task's rows, in the same form as for a user's files."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING

from finetune_common.data.facts import always_the_usual, count_labels, count_texts
from finetune_common.data.loading import HUB
from finetune_common.data.schema import Schema, Source
from finetune_common.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["known_schema"]


def known_schema(
    task: Task, splits: "Mapping[str, Dataset]", data_dir: str | PathLike[str] | None = None
) -> Schema:
    """Return the schema of a known task's rows.

    Args:
        task: One of `finetune_common.tasks.TASKS`.
        splits: Split → rows, as `load_task` gives them; the training rows are among them.
        data_dir: The folder they came from, None for the hub.

    Examples:
        >>> from finetune_common.data import load_task
        >>> from finetune_common.tasks import get_task
        >>> task = get_task("demo-entailment")
        >>> schema = known_schema(task, load_task(task))
        >>> schema.because, schema.sources["validation"].labels
        ('demo-entailment is known', {'entailment': 238, 'not_entailment': 262})
    """
    columns = [*task.columns, "label"]
    plain = {str(split): {name: rows[name][:] for name in columns} for split, rows in splits.items()}
    texts, classes = count_texts(task, plain), count_labels(task, plain)
    place = task.name if task.demo else f"{HUB} {task.name}"
    sources = {
        split: Source(
            task.files[split] if data_dir is not None and not task.demo else place,
            len(rows["label"]),
            labels=classes.get(split, {}),
            **texts[split],
        )
        for split, rows in plain.items()
    }
    return Schema(
        task.name, sources, task.columns, "label", task.kind, f"{task.name} is known", task.labels,
        task.metrics, task.primary,
        usual=always_the_usual(task, plain["train"], plain[task.evaluation[0]]),
    )  # fmt: skip
