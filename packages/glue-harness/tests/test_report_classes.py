"""What became of each class, over the seeds of a task's best setting."""

import csv

from finetune_common.metrics import class_report
from finetune_common.tasks import Task

TASK = Task("demo-entailment", ("text",), ("no", "ye|s"), ("accuracy",), "accuracy", {})


def test_confusions_of_all_seeds_of_the_best_setting(harness, made_up, tmp_path):
    said = {"a": [[9, 0], [0, 9]], "b": [[0, 9], [0, 9]]}
    own = {"data": {"schema": {"kind": "classes"}}}
    for seed in (1, 2):
        of_classes = {"validation": class_report(TASK, said["a"] if seed == 1 else said["b"], [0, 1])}
        made_up("demo-entailment", "good", seed, [0.9], **own, classes=of_classes)
        worse = {"validation": class_report(TASK, said["b"], [0, 1])}
        runs = made_up("demo-entailment", "worse", seed, [0.5], **own, classes=worse)
    done = harness("report", runs, "--output-dir", tmp_path / "report")
    assert done.status == 0, done.err
    with (tmp_path / "report/classes-demo-entailment.csv").open() as file:
        no, yes = csv.DictReader(file)
    # seed 1 is right twice, seed 2 says the second class twice
    assert (no["as no"], no["as ye|s"], no["precision"], no["recall"], no["rows"]) == (
        "1",
        "1",
        "0.500",
        "0.500",
        "2",
    )
    assert (yes["as no"], yes["as ye|s"], yes["precision"], yes["recall"]) == ("0", "2", "0.750", "1.000")
    assert "ye\\|s" in (tmp_path / "report/classes-demo-entailment.md").read_text()
    assert "predictions of each class" in (tmp_path / "report/index.html").read_text()


def test_runs_without_classes_of_ones_own_have_no_such_table(harness, made_up, tmp_path):
    runs = made_up("demo-similarity", "good", 1, [0.9])
    made_up(
        "demo-entailment", "good", 1, [0.9], data={"schema": None}, classes={"validation": {"classes": {}}}
    )
    done = harness("report", runs, "--output-dir", tmp_path / "report")
    assert done.status == 0, done.err
    assert not list((tmp_path / "report").glob("classes-*"))


def test_tasks_whose_names_are_nearly_one_have_a_table_each(harness, made_up, tmp_path):
    of_classes = {"validation": class_report(TASK, [[9, 0], [0, 9]], [0, 1])}
    own = {"data": {"schema": {"kind": "classes"}}, "classes": of_classes}
    for seed, task in enumerate(("team/task", "team-task", "word " * 60)):
        runs = made_up("demo-entailment", "good", seed, [0.9], **own)
        for file in runs.glob("*/result.json"):
            text = file.read_text(encoding="utf-8")
            if f'"seed": {seed}' in text:
                file.write_text(text.replace("demo-entailment", task), encoding="utf-8")
    done = harness("report", runs, "--output-dir", tmp_path / "report")
    assert done.status == 0, done.err
    names = [file.stem for file in (tmp_path / "report").glob("classes-*.csv")]
    assert len(names) == 3
    assert "classes-team-task" in names
