import subprocess
import sys

import pytest

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import GLUE_TASKS, TASKS, get_task

HUB_COLUMNS = {
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "rte": ("sentence1", "sentence2"),
    "sst2": ("sentence",),
    "stsb": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


def test_the_tasks_are_the_nine_of_glue_and_three_demos():
    assert sorted(GLUE_TASKS) == sorted(HUB_COLUMNS)
    assert {name for name in TASKS if name not in GLUE_TASKS} == {
        "demo-acceptability",
        "demo-entailment",
        "demo-similarity",
    }


@pytest.mark.parametrize("name", HUB_COLUMNS)
def test_text_columns_are_named_as_on_the_hub(name):
    assert TASKS[name].columns == HUB_COLUMNS[name]


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_consistent(name):
    task = TASKS[name]
    assert task.primary in task.metrics
    assert set(task.evaluation) < set(task.rows)
    assert task.regression == (task.labels == ())
    assert task.num_labels == (1 if task.regression else len(task.labels))
    if not task.demo:
        assert len(task.official_columns) == len(task.columns)
        assert set(task.files) == set(task.rows)
    hash(task)


@pytest.mark.parametrize(
    ("demo", "model"),
    [("demo-acceptability", "cola"), ("demo-entailment", "rte"), ("demo-similarity", "stsb")],
)
def test_a_demo_task_has_the_shape_of_its_model(demo, model):
    for name in ("columns", "labels", "metrics", "primary", "evaluation"):
        assert getattr(TASKS[demo], name) == getattr(TASKS[model], name)


def test_label_order_is_the_hubs():
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert TASKS["wnli"].labels == ("not_entailment", "entailment")
    assert TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")


def test_mnli_has_two_dev_sets():
    assert get_task("mnli").evaluation == ("validation_matched", "validation_mismatched")
    assert get_task("mnli").metrics == ("accuracy_matched", "accuracy_mismatched")


def test_an_unknown_task_is_refused_with_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"'sst-2' is unknown: did you mean 'sst2'\?"):
        get_task("sst-2")


@pytest.mark.parametrize("module", ["tasks", "data", "data.official", "metrics", "demo", "demo.rows"])
def test_import_brings_no_heavy_library(module):
    heavy = "{'torch', 'datasets', 'transformers', 'sklearn', 'scipy', 'pyarrow'} & set(sys.modules)"
    command = f"import sys, finetune_common.{module}; print(sorted({heavy}))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
