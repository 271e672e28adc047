"""Metrics over a whole evaluation set, a report of each class, and GLUE's average."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError, check_choice
from finetune_common.scorers import check_fits, scorer_of
from finetune_common.tasks import GLUE_TASKS, TASKS, Task, get_task

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

__all__ = ["class_report", "compute_metrics", "glue_average", "metrics_of", "multi_hot"]


def metrics_of(task: Task, primary: str | None = None) -> tuple[str, ...]:
    """Return the metrics of a task, a chosen primary one first.

    Two classes have accuracy, F1 of the second and Matthews' correlation; more have accuracy and the mean of
    the classes' F1 (`f1_macro`), which is low if a model always answers the commonest class; several labels
    per row have `f1_micro` over all and `f1_macro`; numbers have Pearson's and Spearman's correlation. A
    known task has its own.

    Args:
        task: Its kind and the number of its labels decide.
        primary: A metric of this module or a scikit-learn scorer; higher is better.

    Raises:
        ConfigurationError: No such metric, or one that does not fit the task.

    Examples:
        >>> metrics_of(Task("mine", ("text",), ("a", "b", "c"), (), "", {}), "balanced_accuracy")
        ('balanced_accuracy', 'accuracy', 'f1_macro')
    """
    if task.metrics:
        usual = task.metrics
    elif task.kind == "classes":
        usual = (
            ("accuracy", "f1", "matthews_correlation") if task.num_labels == 2 else ("accuracy", "f1_macro")
        )
    else:
        usual = ("f1_micro", "f1_macro") if task.several else ("pearson", "spearmanr")
    if primary is None or primary in usual:
        return tuple(usual) if primary is None else (primary, *(name for name in usual if name != primary))
    if not _is_computed_here(primary, task):
        check_fits(primary, task.kind, task.num_labels)
    return (primary, *usual)


def multi_hot(labels: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Return lists of class indices as zeros and ones, shape (rows, classes).

    Examples:
        >>> multi_hot([[0, 2], []], 3).tolist()
        [[1, 0, 1], [0, 0, 0]]
    """
    matrix = np.zeros((len(labels), classes), dtype=np.int64)
    for row, indices in enumerate(labels):
        matrix[row, list(indices)] = 1
    return matrix


def compute_metrics(
    task: str | Task,
    predictions: "ArrayLike | Tensor",
    labels: "ArrayLike | Tensor",
    split: str | None = None,
) -> dict[str, float]:
    """Return the task's metrics, fractions in [0, 1] or correlations in [-1, 1].

    An undefined metric (Matthews correlation with one class predicted, a correlation with a constant, F1
    without a predicted positive) is 0.0, and one warning says so.

    Args:
        task: The task or its name.
        predictions: Logits of shape (n, classes); of shape (n, 1) or (n,) for regression. Array or tensor.
            With several labels per row, those with a positive logit (a probability above 0.5) are predicted.
        labels: Shape (n,): class indices, or scores; (n, classes) of zeros and ones for several labels a row.
        split: Which of the task's evaluated splits this is. MNLI has two, and the keys end in `_matched` or
            `_mismatched`; all other tasks have one, the default.

    Returns:
        Metric name → value, the names of `task.metrics` that belong to the split.

    Raises:
        ConfigurationError: Shapes that do not fit, no rows, NaN or infinite predictions, missing labels.

    Examples:
        >>> compute_metrics("mrpc", [[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], [0, 1, 0, 1])
        {'accuracy': 0.5, 'f1': 0.5}
    """
    task = get_task(task)
    if split is None:
        split = task.evaluation[0] if len(task.evaluation) == 1 else ""
    check_choice(f"{task.name} split", split, task.evaluation)
    logits, expected = _numpy(predictions).astype(np.float64), _numpy(labels)
    _check(task, logits, expected)
    scores = logits.reshape(-1) if task.regression else logits
    suffix = split.removeprefix("validation") if len(task.evaluation) > 1 else ""
    undefined: list[str] = []
    result = {
        name: _metric(name.removesuffix(suffix), task, scores, expected, undefined)
        for name in task.metrics
        if name.endswith(suffix)
    }
    if undefined:
        warnings.warn(
            f"{task.name}: {' and '.join(undefined)} undefined, reported as 0.0: "
            f"predictions or labels are constant over {len(expected)} rows",
            stacklevel=2,
        )
    return result


def class_report(task: Task, predictions: "ArrayLike | Tensor", labels: "ArrayLike | Tensor") -> JsonObject:
    """Return precision, recall, F1 and rows of each class, and which classes are confused.

    Args:
        task: One of classes or of several labels a row.
        predictions: Logits of shape (n, classes).
        labels: As for `compute_metrics`.

    Returns:
        `classes`: name → precision, recall, f1, rows. For classes also `confusion`: rows are true classes,
        columns predicted ones.

    Examples:
        >>> report = class_report(get_task("rte"), [[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]], [0, 1, 1])
        >>> report["confusion"], report["classes"]["entailment"]
        ([[1, 0], [1, 1]], {'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'rows': 1})
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits, expected = _numpy(predictions).astype(np.float64), _numpy(labels)
    _check(task, logits, expected)
    guesses = (logits > 0).astype(int) if task.several else logits.argmax(axis=1)
    indices = list(range(task.num_labels))
    scores = precision_recall_fscore_support(expected, guesses, labels=indices, zero_division=0.0)
    keys = ("precision", "recall", "f1", "rows")
    classes = {
        name: {
            key: (int if key == "rows" else float)(values[index])
            for key, values in zip(keys, scores, strict=True)
        }
        for index, name in enumerate(task.labels)
    }
    if task.several:
        return {"classes": classes}
    return {"classes": classes, "confusion": confusion_matrix(expected, guesses, labels=indices).tolist()}


def glue_average(results: Mapping[str, Mapping[str, float]]) -> float:
    """Return the benchmark's score: the mean over the nine tasks of the mean of each task's metrics.

    MNLI is one task with two metrics, matched and mismatched; WNLI counts (Wang et al. 2019, GLUE).

    Args:
        results: Task name → metric name → value, as from `compute_metrics`; other tasks are ignored.

    Raises:
        ConfigurationError: Names the tasks or metrics that are missing: an average over fewer is another
            number.
    """
    missing = [
        f"{name} {metric}"
        for name in GLUE_TASKS
        for metric in TASKS[name].metrics
        if metric not in results.get(name, {})
    ]
    if missing:
        raise ConfigurationError(f"the GLUE average needs all nine tasks; missing: {', '.join(missing)}")
    means = [np.mean([results[name][metric] for metric in TASKS[name].metrics]) for name in GLUE_TASKS]
    return float(np.mean(means))


def _numpy(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu() if values.is_floating_point() else values.cpu()
    return np.asarray(values)


def _check(task: Task, logits: np.ndarray, labels: np.ndarray) -> None:
    width = task.num_labels
    rows = len(labels) if labels.ndim == 1 + task.several and labels.shape[1:] in ((), (width,)) else -1
    shapes = [(rows, 1), (rows,)] if task.regression else [(rows, width)]
    if rows < 1 or logits.shape not in shapes:
        raise ConfigurationError(
            f"{task.name}: predictions of shape {logits.shape} and labels of shape {labels.shape}; expected "
            f"{' or '.join('(n, ' + str(width) + ')' if len(s) == 2 else '(n,)' for s in shapes)} "
            f"and {f'(n, {width})' if task.several else '(n,)'} with n at least 1"
        )
    if not np.isfinite(logits).all():
        bad = int(np.argwhere(~np.isfinite(logits))[0][0])
        raise ConfigurationError(f"{task.name}: prediction {bad} is {logits[bad]}: training has diverged")
    low, high = task.label_range if task.regression else (0, 1 if task.several else width - 1)
    if not ((labels >= low) & (labels <= high)).all():
        raise ConfigurationError(f"{task.name}: labels outside [{low:g}, {high:g}]: a split without labels?")


def _is_computed_here(name: str, task: Task) -> bool:
    return name in _METRICS and _METRICS[name][0] == task.kind and (name != "f1" or task.num_labels == 2)


def _metric(name: str, task: Task, scores: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    if _is_computed_here(name, task):
        guesses = scores.argmax(axis=1) if task.kind == "classes" else scores
        return _METRICS[name][1](guesses, labels, undefined)
    try:
        value = scorer_of(name)(task.kind, scores, labels)
    except (ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"{task.name}: metric {name!r} cannot be computed: {reason}") from None
    if not np.isfinite(value):
        undefined.append(name)
        return 0.0
    return value


def _accuracy(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, guesses))


def _f1(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from sklearn.metrics import f1_score

    if not (guesses == 1).any():
        undefined.append("f1")
    return float(f1_score(labels, guesses, zero_division=0.0))


def _matthews(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from sklearn.metrics import matthews_corrcoef

    if _constant(guesses) or _constant(labels):
        undefined.append("matthews_correlation")
        return 0.0
    return float(matthews_corrcoef(labels, guesses))


def _pearson(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from scipy.stats import pearsonr

    if _constant(guesses) or _constant(labels):
        undefined.append("pearson")
        return 0.0
    return float(pearsonr(guesses, labels)[0])


def _spearman(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from scipy.stats import spearmanr

    if _constant(guesses) or _constant(labels):
        undefined.append("spearmanr")
        return 0.0
    return float(spearmanr(guesses, labels)[0])


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


_METRICS = {
    "accuracy": ("classes", _accuracy),
    "f1": ("classes", _f1),
    "matthews_correlation": ("classes", _matthews),
    "pearson": ("regression", _pearson),
    "spearmanr": ("regression", _spearman),
}
"""Name → its kind of task, and its function; all other metrics are scikit-learn's."""
