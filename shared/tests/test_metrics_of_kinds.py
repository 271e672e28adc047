"""Metrics of every kind of task against values worked out by hand, and scikit-learn's by their names."""

import numpy as np
import pytest

from finetune_common.errors import ConfigurationError
from finetune_common.metrics import class_report, compute_metrics, metrics_of, multi_hot
from finetune_common.tasks import Task

UNBOUNDED = (float("-inf"), float("inf"))


def task(labels: int, metric: str | None = None, several: bool = False) -> Task:
    names = tuple("abcdefgh"[:labels])
    own = Task("mine", ("text",), names, (), "", {}, several=several, label_range=UNBOUNDED)
    metrics = metrics_of(own, metric)
    return Task("mine", ("text",), names, metrics, metrics[0], {}, several=several, label_range=UNBOUNDED)


def test_what_each_kind_is_scored_by():
    assert task(2).metrics == ("accuracy", "f1", "matthews_correlation")
    assert task(3).metrics == ("accuracy", "f1_macro")
    assert task(3, several=True).metrics == ("f1_micro", "f1_macro")
    assert task(0).metrics == ("pearson", "spearmanr")
    assert task(3, "f1_macro").metrics == ("f1_macro", "accuracy")


def test_macro_f1_of_always_answering_the_commonest_class():
    # eight a, one b, one c: F1 of a is 2*8 / (2*8 + 2), the others have none
    truth = [0] * 8 + [1, 2]
    found = compute_metrics(task(3), np.tile([1.0, 0.0, 0.0], (10, 1)), truth)
    assert found == {"accuracy": 0.8, "f1_macro": pytest.approx(16 / 18 / 3)}


def test_several_labels_by_hand():
    # a: 1 true positive, 1 false positive; b: 1 false negative; c: 1 true positive
    truth = multi_hot([[0, 2], [1], []], 3)
    scores = np.array([[1.0, -1.0, 2.0], [-1.0, -0.5, -3.0], [0.5, -1.0, -1.0]])
    found = compute_metrics(task(3, several=True), scores, truth)
    assert found["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["f1_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)
    classes = class_report(task(3, several=True), scores, truth)["classes"]
    assert classes["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "rows": 1}
    assert classes["b"]["recall"] == 0.0


def test_a_probability_of_exactly_a_half_is_no_label():
    found = compute_metrics(task(1, several=True), [[0.0], [1e-9]], [[0], [1]])
    assert found["f1_micro"] == 1.0


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("neg_mean_absolute_error", -0.5), ("r2", 1 - 0.75 / 2.0), ("neg_root_mean_squared_error", -0.5)],
)
def test_metrics_of_numbers_by_hand(metric, expected):
    found = compute_metrics(task(0, metric), [1.5, 2.5, 2.5], [1.0, 2.0, 3.0])
    assert found[metric] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["roc_auc", "average_precision", "top_k_accuracy", "explained_variance"])
def test_the_function_of_a_scorer_is_that_scorer(name):
    """`roc_auc_score` of the chosen class, not of the scores, would be another number."""
    random = np.random.default_rng(0)
    kind = 0 if name == "explained_variance" else 2
    truth = random.normal(size=50) if kind == 0 else random.integers(0, 2, 50)
    scores = random.normal(size=50 if kind == 0 else (50, 2))
    by_name, by_function = (
        compute_metrics(task(kind, each), scores, truth)[each] for each in (name, f"{name}_score")
    )
    assert by_function == by_name


def test_a_function_of_scores_sees_them_and_one_of_answers_does_not():
    # of the labels of each row, ordered by score, the share that is true down to each true one
    truth, scores = multi_hot([[0], [2]], 3), np.array([[-1.0, -2.0, -3.0], [3.0, 2.0, 1.0]])
    metric = "label_ranking_average_precision_score"
    assert compute_metrics(task(3, metric, several=True), scores, truth)[metric] == pytest.approx(
        (1 + 1 / 3) / 2
    )
    kappa = compute_metrics(task(2, "cohen_kappa_score"), [[0, 1], [0, 9], [2, 1], [2, 1]], [1, 1, 0, 1])
    assert kappa["cohen_kappa_score"] == pytest.approx((0.75 - 0.5) / 0.5)


def test_a_threshold_free_metric_sees_the_scores():
    # of the four pairs of a positive and a negative, three are in order
    scores = [[0.5, 0.1], [0.5, 0.8], [0.5, 0.3], [0.5, 0.9]]
    assert compute_metrics(task(2, "roc_auc"), scores, [0, 0, 1, 1])["roc_auc"] == 0.75
    probabilities = np.log([[0.9, 0.1], [0.4, 0.6]])
    expected = (np.log(0.9) + np.log(0.6)) / 2
    assert compute_metrics(task(2, "neg_log_loss"), probabilities, [0, 1])["neg_log_loss"] == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("labels", "several", "metric", "said"),
    [
        (3, False, "r2", "is for numbers, the task has classes"),
        (3, True, "neg_mean_absolute_error", "is for numbers, the task has labels"),
        (0, False, "accuracy", "not one of numbers"),
        (0, False, "adjusted_rand_score", "not one of numbers"),
        (3, False, "f1", r"does not fit 3 classes .*: give f1_macro or f1_micro"),
        (2, False, "f1_samples", "does not fit 2 classes"),
        (2, False, "accurracy", "did you mean 'accuracy'"),
        (2, False, "mean_absolute_error", "did you mean 'neg_mean_absolute_error'"),
        (2, False, "make_scorer", "is unknown"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(labels, several, metric, said):
    with pytest.raises(ConfigurationError, match=said) as refused:
        task(labels, metric, several)
    assert len(str(refused.value)) <= 400


def test_what_is_undefined_is_zero_and_said():
    with pytest.warns(UserWarning, match="roc_auc and matthews_correlation undefined"):
        assert compute_metrics(task(2, "roc_auc"), np.eye(2)[[0, 1]], [1, 1])["roc_auc"] == 0.0


def test_shapes_of_several_labels_are_checked():
    with pytest.raises(ConfigurationError, match=r"expected \(n, 3\) and \(n, 3\)"):
        compute_metrics(task(3, several=True), np.zeros((2, 3)), [0, 1])
    with pytest.raises(ConfigurationError, match="a split without labels"):
        compute_metrics(task(3, several=True), np.zeros((1, 3)), [[-1, -1, -1]])
