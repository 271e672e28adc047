"""Metrics against values worked out by hand, and the benchmark's own published average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune_common.errors import ConfigurationError
from finetune_common.metrics import compute_metrics, glue_average


def logits(classes, width=2):
    return np.eye(width)[classes]


# true positives 3, false negatives 1, false positives 2, true negatives 4
LABELS = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
GUESSES = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]


def test_matthews_correlation_of_a_confusion_matrix():
    # (3*4 - 2*1) / sqrt(5 * 4 * 6 * 5)
    assert compute_metrics("cola", logits(GUESSES), LABELS) == {
        "matthews_correlation": pytest.approx(10 / 600**0.5)
    }


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_accuracy_and_f1_of_class_1(task):
    expected = {"accuracy": pytest.approx(0.7), "f1": pytest.approx(2 * 3 / (2 * 3 + 2 + 1))}
    assert compute_metrics(task, logits(GUESSES), LABELS) == expected


@pytest.mark.parametrize("task", ["qnli", "rte", "sst2", "wnli"])
def test_accuracy(task):
    assert compute_metrics(task, logits(GUESSES), LABELS) == {"accuracy": pytest.approx(0.7)}


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_pearson_and_spearman(shape):
    # deviations (-1.5, -.5, .5, 1.5) and (-2, -1, 0, 3): 8 / sqrt(5 * 14); ranks agree but for none: 1
    found = compute_metrics("stsb", np.array([1.0, 2.0, 3.0, 4.0]).reshape(shape), [0.0, 1.0, 2.0, 5.0])
    assert found == {"pearson": pytest.approx(8 / 70**0.5), "spearmanr": pytest.approx(1.0)}


def test_spearman_ranks_ties_by_their_mean():
    # ranks (1, 2.5, 2.5, 4) and (1, 2, 3, 4): 4.5 / sqrt(4.5 * 5)
    found = compute_metrics("stsb", [1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0])
    assert found["spearmanr"] == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


def test_mnli_matched_and_mismatched_are_two_results():
    outputs, labels = logits([0, 1, 2, 0], 3), [0, 1, 2, 2]
    assert compute_metrics("mnli", outputs, labels, "validation_matched") == {"accuracy_matched": 0.75}
    assert compute_metrics("mnli", outputs, labels, "validation_mismatched") == {"accuracy_mismatched": 0.75}
    with pytest.raises(ConfigurationError, match="mnli split"):
        compute_metrics("mnli", outputs, labels)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_matthews_is_the_correlation_of_the_two_indicators(pairs):
    guesses, labels = map(np.array, zip(*pairs, strict=True))
    if guesses.std() == 0 or labels.std() == 0:
        with pytest.warns(UserWarning, match=r"matthews_correlation undefined, reported as 0\.0"):
            found = compute_metrics("cola", logits(guesses), labels)
        expected = 0.0
    else:
        found, expected = compute_metrics("cola", logits(guesses), labels), np.corrcoef(guesses, labels)[0, 1]
    assert found["matthews_correlation"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_of_any_dtype_are_taken(dtype):
    outputs = torch.tensor(logits(GUESSES), dtype=dtype, requires_grad=True)
    assert compute_metrics("rte", outputs, torch.tensor(LABELS)) == {"accuracy": pytest.approx(0.7)}


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "expected", "named"),
    [
        ("cola", logits([1, 1, 1]), [0, 1, 1], {"matthews_correlation": 0.0}, "matthews_correlation"),
        ("cola", logits([1, 0, 1]), [1, 1, 1], {"matthews_correlation": 0.0}, "matthews_correlation"),
        ("mrpc", logits([0, 0, 0, 0]), [0, 1, 0, 1], {"accuracy": 0.5, "f1": 0.0}, "f1"),
        (
            "stsb",
            [2.5, 2.5, 2.5],
            [0.0, 1.0, 5.0],
            {"pearson": 0.0, "spearmanr": 0.0},
            "pearson and spearmanr",
        ),
        ("stsb", [2.5], [3.0], {"pearson": 0.0, "spearmanr": 0.0}, "pearson and spearmanr"),
    ],
)
def test_degenerate_predictions_give_zero_and_one_warning(task, outputs, labels, expected, named):
    with pytest.warns(UserWarning, match=f"{named} undefined") as caught:
        assert compute_metrics(task, outputs, labels) == expected
    assert len(caught) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused(bad):
    with pytest.raises(ConfigurationError, match=r"prediction 1 is .*diverged"):
        compute_metrics("stsb", [1.0, bad], [1.0, 2.0])
    with pytest.raises(ConfigurationError, match=r"prediction 0 is .*diverged"):
        compute_metrics("rte", [[bad, 0.0]], [1])


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        ("rte", logits([0, 1]), [0]),
        ("rte", logits([0, 1], 3), [0, 1]),
        ("rte", [0, 1], [0, 1]),
        ("stsb", [[1.0, 2.0]], [1.0]),
        ("rte", np.empty((0, 2)), []),
    ],
)
def test_shapes_that_do_not_fit_are_refused(task, outputs, labels):
    with pytest.raises(ConfigurationError, match="predictions of shape"):
        compute_metrics(task, outputs, labels)


@pytest.mark.parametrize(("task", "outputs"), [("rte", logits([0, 1])), ("stsb", [1.0, 2.0])])
def test_a_split_without_labels_is_refused(task, outputs):
    with pytest.raises(ConfigurationError, match="a split without labels"):
        compute_metrics(task, outputs, [-1, -1])


HUMANS = {
    "cola": {"matthews_correlation": 0.664},
    "sst2": {"accuracy": 0.978},
    "mrpc": {"f1": 0.863, "accuracy": 0.808},
    "stsb": {"pearson": 0.927, "spearmanr": 0.926},
    "qqp": {"f1": 0.595, "accuracy": 0.804},
    "mnli": {"accuracy_matched": 0.920, "accuracy_mismatched": 0.928},
    "qnli": {"accuracy": 0.912},
    "rte": {"accuracy": 0.936},
    "wnli": {"accuracy": 0.959},
}
"""The human baseline (Nangia and Bowman 2019), score 87.1. MNLI as two tasks gives 87.6, no WNLI 85.9."""


def test_the_average_is_the_benchmarks():
    assert round(glue_average(HUMANS), 3) == 0.871
    assert glue_average({**HUMANS, "demo-entailment": {"accuracy": 0.0}}) == glue_average(HUMANS)


@pytest.mark.parametrize("missing", HUMANS)
def test_an_average_over_fewer_tasks_is_refused(missing):
    with pytest.raises(ConfigurationError, match=f"missing: {missing}"):
        glue_average({name: result for name, result in HUMANS.items() if name != missing})


def test_an_average_over_one_of_mnlis_dev_sets_is_refused():
    with pytest.raises(ConfigurationError, match=r"missing: mnli accuracy_mismatched$"):
        glue_average({**HUMANS, "mnli": {"accuracy_matched": 0.9}})
