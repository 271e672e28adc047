"""Counts of rows before training: classes, empty texts, duplicates, rows in two splits."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from finetune_common.aliases import JsonObject, Rows
from finetune_common.tasks import Task

if TYPE_CHECKING:
    import numpy as np

__all__ = ["always_the_usual", "count_labels", "count_texts"]


def _texts(task: Task, rows: Rows) -> Iterator[tuple[str, ...]]:
    return zip(*(rows[name] for name in task.columns), strict=True)


def count_texts(task: Task, splits: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """Count, for each split, empty texts, texts that occurred earlier in it, and texts also in training.

    Examples:
        >>> task = Task("mine", ("text",), ("no", "yes"), ("accuracy",), "accuracy", {})
        >>> splits = {"train": {"text": ["a", "", "a"]}, "validation": {"text": ["a", "b"]}}
        >>> counts = count_texts(task, splits)
        >>> counts["train"], counts["validation"]
        ({'empty': 1, 'duplicates': 1, 'in_train': 0}, {'empty': 0, 'duplicates': 0, 'in_train': 1})
    """
    trained = {hash(row) for row in _texts(task, splits["train"])} if "train" in splits else set[int]()
    counts: dict[str, dict[str, int]] = {}
    for split, rows in splits.items():
        distinct: set[int] = set()
        empty = total = common = 0
        for row in _texts(task, rows):
            key = hash(row)
            total += 1
            empty += any(not text or text.isspace() for text in row)
            common += split != "train" and key in trained
            distinct.add(key)
        counts[split] = {"empty": empty, "duplicates": total - len(distinct), "in_train": common}
    return counts


def count_labels(task: Task, splits: Mapping[str, Rows]) -> dict[str, dict[str, int]]:
    """Count the rows of each class, in the order of the classes; rows without a public label are left out."""
    if task.regression:
        return {}
    label_counts: dict[str, dict[str, int]] = {}
    for split, rows in splits.items():
        labels = rows["label"]
        counts = (
            Counter(index for indices in labels for index in indices) if task.several else Counter(labels)
        )
        label_counts[split] = {name: counts[index] for index, name in enumerate(task.labels)}
    return label_counts


def always_the_usual(task: Task, train: Rows, evaluated: Rows) -> JsonObject:
    """Score a constant answer: the commonest class, the labels that most rows have, or the mean.

    Returns:
        `answer`, and `metrics` on the evaluated rows; of scores also their `spread`, the root of the mean
        squared error of the answer.
    """
    import numpy as np

    from finetune_common.metrics import multi_hot

    labels, truth = train["label"], evaluated["label"]
    if task.regression:
        mean = float(np.mean(labels))
        spread = float(np.sqrt(np.mean((np.asarray(truth) - mean) ** 2)))
        return {
            "answer": mean,
            "metrics": _metrics(task, np.full(len(truth), mean), np.asarray(truth)),
            "spread": spread,
        }
    if task.several:
        share = multi_hot(labels, task.num_labels).mean(axis=0)
        answer = [task.labels[i] for i in np.flatnonzero(share >= 0.5)]
        scores = np.tile(share - 0.5, (len(truth), 1))
        return {
            "answer": answer,
            "metrics": _metrics(task, scores, multi_hot(truth, task.num_labels)),
        }
    usual = Counter(labels).most_common(1)[0][0]
    scores = np.tile(np.eye(task.num_labels)[usual], (len(truth), 1))
    return {"answer": task.labels[usual], "metrics": _metrics(task, scores, np.asarray(truth))}


def _metrics(task: Task, predictions: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
    """Compute metrics of a constant answer without warnings of undefined ones."""
    import warnings

    from finetune_common.metrics import compute_metrics

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compute_metrics(task, predictions, labels, task.evaluation[0])
