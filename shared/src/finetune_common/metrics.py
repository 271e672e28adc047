"""GLUE's metrics over a whole dev set, and the benchmark's average."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune_common.errors import ConfigurationError, check_choice
from finetune_common.tasks import GLUE_TASKS, TASKS, Task, get_task

__all__ = ["compute_metrics", "glue_average"]


def compute_metrics(
    task: str | Task, predictions: Any, labels: Any, split: str | None = None
) -> dict[str, float]:
    """Return the task's metrics, fractions in [0, 1] or correlations in [-1, 1].

    Where a metric is undefined (Matthews correlation with one class predicted, a correlation with a constant,
    F1 without a predicted positive) it is 0.0, and one warning says so.

    Args:
        task: The task or its name.
        predictions: Logits of shape (n, classes); of shape (n, 1) or (n,) for regression. Array or tensor.
        labels: Shape (n,): class indices, or scores.
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
    guesses = logits.reshape(-1) if task.regression else logits.argmax(axis=1)
    suffix = split.removeprefix("validation")
    undefined: list[str] = []
    result = {
        name: _METRICS[name.removesuffix(suffix)](guesses, expected, undefined)
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


def glue_average(results: Mapping[str, Mapping[str, float]]) -> float:
    """Return the benchmark's score: the mean over the nine tasks of the mean of each task's metrics.

    MNLI is one task with two metrics, matched and mismatched; WNLI counts (Wang et al. 2019, GLUE).

    Args:
        results: Task name → metric name → value, as from `compute_metrics`; other tasks are not looked at.

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
    rows = len(labels) if labels.ndim == 1 else -1
    shapes = [(rows, 1), (rows,)] if task.regression else [(rows, task.num_labels)]
    if rows < 1 or logits.shape not in shapes:
        raise ConfigurationError(
            f"{task.name}: predictions of shape {logits.shape} and labels of shape {labels.shape}; expected "
            f"{' or '.join('(n, ' + str(task.num_labels) + ')' if len(s) == 2 else '(n,)' for s in shapes)} "
            f"and (n,) with n at least 1"
        )
    if not np.isfinite(logits).all():
        bad = int(np.argwhere(~np.isfinite(logits))[0][0])
        raise ConfigurationError(f"{task.name}: prediction {bad} is {logits[bad]}: training has diverged")
    low, high = task.label_range if task.regression else (0, task.num_labels - 1)
    if not ((labels >= low) & (labels <= high)).all():
        raise ConfigurationError(f"{task.name}: labels outside [{low:g}, {high:g}]: a split without labels?")


def _accuracy(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, guesses))


def _f1(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from sklearn.metrics import f1_score

    if not (guesses == 1).any():
        undefined.append("f1")
    return float(f1_score(labels, guesses, zero_division=0.0))  # type: ignore[arg-type]


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
    return float(pearsonr(guesses, labels)[0])  # type: ignore[arg-type]


def _spearman(guesses: np.ndarray, labels: np.ndarray, undefined: list[str]) -> float:
    from scipy.stats import spearmanr

    if _constant(guesses) or _constant(labels):
        undefined.append("spearmanr")
        return 0.0
    return float(spearmanr(guesses, labels)[0])  # type: ignore[arg-type]


def _constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearmanr": _spearman,
}
