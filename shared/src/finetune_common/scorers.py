"""Metrics by their names in scikit-learn, computed by its scorers; greater is always better."""

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from finetune_common.errors import ConfigurationError, did_you_mean

__all__ = ["Scorer", "check_fits", "scorer_of"]

Scorer: TypeAlias = Callable[[str, np.ndarray, np.ndarray], float]
"""(kind of the task, scores, labels) → the metric."""


def scorer_of(name: str) -> Scorer:
    """Return a scikit-learn scorer as a function `score(kind, scores, labels)`.

    Args:
        name: As in `sklearn.metrics.get_scorer_names()`, or a function `sklearn.metrics.<name>` that ends in
            `_score`: the scorer of that name without the ending, where there is one. Scorers of errors and
            losses begin with `neg_`.

    Raises:
        ConfigurationError: No scorer has that name.

    Examples:
        >>> score = scorer_of("balanced_accuracy")
        >>> score("classes", np.eye(2)[[0, 0, 1, 1]], np.array([0, 0, 0, 1]))
        0.8333333333333333
    """
    from sklearn import metrics as stubbed

    metrics: Any = stubbed  # its types know other arguments
    known = metrics.get_scorer_names()
    function = getattr(metrics, name, None)
    scorer_name = name if name in known else name.removesuffix("_score")
    if scorer_name in known:
        scorer = metrics.get_scorer(scorer_name)
    elif callable(function) and name.endswith(("_score", "_corrcoef")):
        scorer = metrics.make_scorer(function, response_method=_read_by(function))
    else:
        raise ConfigurationError(f"metric {name!r} is unknown: {did_you_mean(name, known)}"[:400])

    def score(kind: str, scores: np.ndarray, labels: np.ndarray) -> float:
        model = _model_that_predicts(kind, scores)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compute_metrics warns once of undefined metrics
            return float(scorer(model, np.zeros((len(labels), 1)), labels))

    return score


def _read_by(function: Callable[..., object]) -> str | tuple[str, ...]:
    """Return which answers of a model a function of (truth, answers) is made for, by what it calls them."""
    answers = list(signature(function).parameters)[1]
    of_name = {"y_score": ("decision_function", "predict_proba"), "y_proba": "predict_proba"}
    return of_name.get(answers, "predict")


def _model_that_predicts(kind: str, scores: np.ndarray) -> object:
    """Return an estimator with given predictions, for a scorer to call."""
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

    class Classifier(ClassifierMixin, BaseEstimator):
        def __init__(self, scores: np.ndarray, several: bool) -> None:
            self.scores, self.several = scores, several
            classes = scores.shape[1]
            self.classes_: object = [np.arange(2)] * classes if several else np.arange(classes)

        def predict(self, rows: object) -> np.ndarray:
            return (self.scores > 0).astype(int) if self.several else self.scores.argmax(axis=1)

        def predict_proba(self, rows: object) -> np.ndarray:
            if self.several:
                return 1 / (1 + np.exp(-self.scores))
            shifted = np.exp(self.scores - self.scores.max(axis=1, keepdims=True))
            return shifted / shifted.sum(axis=1, keepdims=True)

        def decision_function(self, rows: object) -> np.ndarray:
            two = not self.several and self.scores.shape[1] == 2
            return self.scores[:, 1] - self.scores[:, 0] if two else self.scores

    class Regressor(RegressorMixin, BaseEstimator):
        def __init__(self, scores: np.ndarray) -> None:
            self.scores = scores

        def predict(self, rows: object) -> np.ndarray:
            return self.scores

    return Regressor(scores) if kind == "regression" else Classifier(scores, several=kind == "labels")


def check_fits(name: str, kind: str, classes: int) -> None:
    """Refuse a scorer that does not fit a kind of task, by trying it.

    Metrics of classes refuse fractions, metrics of numbers do not; metrics of clusters ignore which number
    was predicted.

    Raises:
        ConfigurationError: It does not fit, or there is none of that name.

    Examples:
        >>> check_fits("f1_macro", "classes", 3)
        >>> check_fits("r2", "classes", 3)
        Traceback (most recent call last):
        finetune_common.errors.ConfigurationError: metric 'r2' is for numbers, the task has classes
    """
    score, random = scorer_of(name), np.random.default_rng(0)
    numbers = 1 + random.random((3, 24))
    try:
        scores = [score("regression", guess, numbers[2]) for guess in numbers[:2]]
    except (ValueError, AttributeError, TypeError):
        scores = []
    if kind == "regression":
        if len(set(scores)) < 2:
            raise ConfigurationError(
                f"metric {name!r} is not one of numbers: give r2, neg_mean_absolute_error or another"
            )
        return
    if scores:
        raise ConfigurationError(f"metric {name!r} is for numbers, the task has {kind}")
    labels = np.arange(max(24, 2 * classes)) % classes
    truth = np.eye(classes, dtype=int)[labels] if kind == "labels" else labels
    try:
        score(kind, random.standard_normal((len(truth), classes)), truth)
    except (ValueError, AttributeError, TypeError) as error:
        from sklearn.metrics import get_scorer_names

        reason = " ".join(str(error).split()).partition(". ")[0][:120]
        others = [other for other in get_scorer_names() if other.startswith(f"{name}_")] or [
            "f1_macro",
            "accuracy",
        ]
        what = f"{classes} {'labels' if kind == 'labels' else 'classes'}"
        raise ConfigurationError(
            f"metric {name!r} does not fit {what} ({reason}): give {' or '.join(others[:4])}"
        ) from None
