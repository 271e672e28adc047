"""The rows of a demo task, the same on every machine."""

from random import Random

from finetune_common.aliases import Rows
from finetune_common.demo.acceptability import acceptability_row
from finetune_common.demo.entailment import entailment_row
from finetune_common.demo.similarity import similarity_row
from finetune_common.tasks import Task, get_task

__all__ = ["demo_rows"]

_CLASSIFIED = {"demo-acceptability": acceptability_row, "demo-entailment": entailment_row}


def demo_rows(task: str | Task, split: str) -> Rows:
    """Return the text columns, `label` and `idx` of one split; no row occurs twice in the two splits.

    Args:
        task: A demo task or its name.
        split: `"train"` (2,000 rows) or `"validation"` (500 rows).

    Examples:
        >>> rows = demo_rows("demo-acceptability", "validation")
        >>> len(rows["sentence"]), set(rows["label"]) == {0, 1}
        (500, True)
    """
    task = get_task(task)
    random = Random(f"{task.name} {task.version}")
    seen: set[tuple[str, ...]] = set()
    columns: Rows = {}
    for name, count in task.rows.items():
        columns = {column: [] for column in (*task.columns, "label", "idx")}
        for index in range(count):
            texts, label = _new_row(task, random, seen)
            for column, value in zip(columns, (*texts, label, index), strict=True):
                columns[column].append(value)
        if name == split:
            break
    return columns


def _new_row(task: Task, random: Random, seen: set[tuple[str, ...]]) -> tuple[tuple[str, ...], float]:
    drawn = random.randrange(2)  # once, so that skipping repeated rows does not skew the classes
    while True:
        if task.name in _CLASSIFIED:
            texts, label = _CLASSIFIED[task.name](random, drawn), drawn
        else:
            texts, label = similarity_row(random)
        if texts not in seen:
            seen.add(texts)
            return texts, label
