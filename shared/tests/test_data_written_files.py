"""What pandas and the csv module write comes back equal, or is refused in one line."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_common.data import Choices, OwnRows, read_own_files
from finetune_common.data.values import is_missing
from finetune_common.errors import ConfigurationError

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
WORDS = TEXT.map(lambda text: f"word {text}")
LABELS = st.lists(
    st.sampled_from(["billing", "late delivery", "log-in", "naïve", "7 up"]), min_size=2, max_size=9
)


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str, str]]:
    labels = draw(LABELS.filter(lambda found: len(set(found)) > 1))
    return [(draw(WORDS), label) for label in labels]


def read(path: Path, **choices: Any) -> OwnRows | str:
    """Return what a file is read to, or the line that refuses it."""
    try:
        return read_own_files("mine", path, path, choices=Choices(**choices))
    except ConfigurationError as error:
        return str(error)


def comes_back_or_is_refused(path: Path, rows: list[tuple[str, str]], **choices: Any) -> None:
    found = read(path, **choices)
    if isinstance(found, str):
        assert len(found) <= 400
        assert "\n" not in found
        return
    split = found.splits["train"]
    labels = [found.task.labels[index] for index in split["label"]]
    assert list(zip(split["text"], labels, strict=True)) == rows


@settings(deadline=None, max_examples=150)
@given(
    rows=tables(),
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    quote=st.sampled_from("\"'"),
    said=st.booleans(),
)
def test_the_csv_module_in_any_dialect(rows, delimiter, quoting, ending, quote, said):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(
                file, delimiter=delimiter, quoting=quoting, lineterminator=ending, quotechar=quote
            )
            writer.writerow(["text", "label"])
            writer.writerows(rows)
        comes_back_or_is_refused(path, rows, delimiter=delimiter if said else None)


@settings(deadline=None, max_examples=100)
@given(
    rows=tables(),
    index=st.booleans(),
    ending=st.sampled_from([".csv", ".tsv", ".csv.gz", ".jsonl", ".json", ".parquet", ".jsonl.gz"]),
    categories=st.booleans(),
    start=st.integers(0, 3),
)
def test_pandas_with_and_without_an_index(rows, index, ending, categories, start):
    frame = pandas.DataFrame(rows, columns=pandas.Index(["text", "label"]))
    frame.index = frame.index + start
    if categories:
        frame["label"] = frame["label"].astype("category")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{ending}"
        if ending.startswith((".csv", ".tsv")):
            frame.to_csv(path, index=index, sep="\t" if ending == ".tsv" else ",")
        elif ending == ".parquet":
            frame.to_parquet(path, index=index)
        else:
            frame.to_json(path, orient="records", lines=ending.startswith(".jsonl"))
        found = read(path)
    if isinstance(found, str):  # pandas leaves a lone carriage return without quotes
        assert ending.startswith((".csv", ".tsv"))
        assert any("\r" in text for text, _ in rows)
        return
    assert found.splits["train"]["text"] == [text for text, _ in rows]
    assert [found.task.labels[index] for index in found.splits["train"]["label"]] == [
        label for _, label in rows
    ]


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(-3, 3), st.floats(), st.text(max_size=3)), max_size=8)
)
def test_labels_of_any_kind_are_read_or_refused(values):
    lines = "\n".join(json.dumps({"text": f"word {i}", "label": value}) for i, value in enumerate(values))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_text(lines, encoding="utf-8")
        found = read(path, drop_unlabelled=True)
    if isinstance(found, str):
        assert len(found) <= 400
        return
    assert len(found.splits["train"]["label"]) == sum(not is_missing(value) for value in values)
