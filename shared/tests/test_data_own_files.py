"""Own files: the same rows in any format, tasks told from them, and one line for whatever is wrong."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from finetune_common.data import load_own_files, load_task
from finetune_common.errors import ConfigurationError

ROWS: list[dict[str, Any]] = [
    {"text": 'a "quoted", comma', "label": "yes"},
    {"text": "two\nlines", "label": "no"},
    {"text": "naïve ☕", "label": "yes"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    path = write(tmp_path / f"rows{ending}", ROWS)
    task, data = load_own_files("reviews", path, path)
    assert (task.name, task.columns, task.labels) == ("reviews", ("text",), ("no", "yes"))
    assert task.metrics == ("accuracy", "f1")
    for rows in data.values():
        assert rows["text"][:] == [row["text"] for row in ROWS]
        assert rows["label"][:] == [1, 0, 1]
        assert rows["idx"][:] == [0, 1, 2]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([10, 2, 3], ("2", "3", "10"), [2, 0, 1]),
        ([1, 2, 1], ("1", "2"), [0, 1, 0]),
        (["b", "a", "c"], ("a", "b", "c"), [1, 0, 2]),
        ([True, False, True], None, [1, 0, 1]),
        ([0.5, 3.0, -1.25], (), [0.5, 3.0, -1.25]),
    ],
    ids=["whole numbers in their order", "digits are names", "words", "truth", "scores"],
)
def test_what_kind_of_label_it_is_shows_in_its_values(tmp_path, ending, labels, classes, expected):
    rows = [{"id": 7, "first": "a", "second": "b", "label": label} for label in labels]
    path = write(tmp_path / f"rows{ending}", rows)
    task, data = load_own_files("mine", path, path)
    assert task.columns == ("first", "second")
    assert classes is None or task.labels == classes
    assert task.regression == (classes == ())
    assert data["train"]["label"][:] == expected
    assert task.primary == ("pearson" if task.regression else "accuracy")


def test_a_known_task_keeps_its_columns_labels_and_metrics(tmp_path):
    rows = [
        {"#2 String": "b", "Quality": "1", "#1 String": "a", "more": "x"},
        {"#2 String": "d", "Quality": "0", "#1 String": "c", "more": "x"},
    ]
    named = [{"sentence1": "a", "sentence2": "b", "label": "equivalent"}]
    train, dev = write(tmp_path / "train.tsv", rows), write(tmp_path / "dev.jsonl", named)
    task, data = load_own_files("mrpc", train, dev)
    assert task.metrics == ("accuracy", "f1")
    assert data["train"]["sentence1"][:] == ["a", "c"]
    assert data["train"]["label"][:] == [1, 0]
    assert data["validation"]["label"][:] == [1]
    assert data["train"].features == load_task("demo-entailment", splits=["train"])["train"].features | {
        "label": data["train"].features["label"]
    }
    premises = [{"premise": "a", "hypothesis": "b", "label": "neutral"}]
    path = write(tmp_path / "mnli.json", premises)
    task, data = load_own_files("mnli", path, path)
    assert (task.metrics, task.primary, list(data)) == (("accuracy",), "accuracy", ["train", "validation"])


WRONG: dict[str, tuple[str, str, str]] = {
    "no such file": ("absent.csv", "", "No such file"),
    "another ending": ("rows.xlsx", "x", r"'.xlsx': give one of .csv"),
    "nothing": ("rows.csv", "text,label\n", "no rows"),
    "no label": ("rows.csv", "text,score\na,1\n", "no column 'label' among text, score: rename"),
    "too many columns": ("rows.csv", "a,b,c,label\n1,2,3,4\n", r"3 columns beside the label \(a, b, c\)"),
    "one class": ("rows.csv", "text,label\na,1\nb,1\n", "every label is 1"),
    "an empty label": ("rows.csv", "text,label\na,1\nb,0\nc,\n", "row 3: label '': allowed is 0, 1"),
    "a word among scores": (
        "rows.csv",
        "text,label\na,1.5\nb,x\nc,2\n",
        "row 2: label 'x': allowed is a number",
    ),
    "a short line": ("rows.csv", "text,label\na,1\nb\n", "line 3: 1 cells, expected 2"),
    "broken json": ("rows.jsonl", '{"text": "a", "label": 1}\n{"text"', "line 2: not JSON"),
    "other columns": (
        "rows.jsonl",
        '{"text": "a", "label": 1}\n{"t": "b"}',
        "row 2: expected the columns text",
    ),
    "no rows but a number": ("rows.json", "3", "row 1: expected {column: value}, found 3"),
    "text that is none": (
        "rows.jsonl",
        '{"text": 1, "label": 1}\n{"text": "b", "label": 0}',
        "row 1: text is 1",
    ),
    "no parquet": ("rows.parquet", "text", "not a parquet file"),
    "not UTF-8": ("rows.csv", "text,label\n\udce9,1\n", "not UTF-8"),
}


@pytest.mark.parametrize(("name", "content", "message"), WRONG.values(), ids=WRONG)
def test_one_line_says_what_is_wrong(tmp_path, name, content, message):
    path = tmp_path / name
    if content:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationError, match=message) as raised:
        load_own_files("mine", path, path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_label_that_training_does_not_know_is_refused(tmp_path):
    train = write(tmp_path / "train.csv", ROWS)
    dev = write(tmp_path / "dev.csv", [{"text": "x", "label": "maybe"}])
    with pytest.raises(ConfigurationError, match=r"dev.csv row 1: label 'maybe': allowed is no, yes"):
        load_own_files("reviews", train, dev)
