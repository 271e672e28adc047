"""Read a task from files of one's own: csv, tsv, json, jsonl or parquet."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf, isfinite
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_common.errors import ConfigurationError
from finetune_common.tasks import TASKS, Task

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["FORMATS", "load_own_files", "read_columns"]

FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
"""Endings of the files that can be read; `.json` holds a list of rows, or a row a line as `.jsonl`."""

LABEL = "label"
NUMBERS = ("idx", "id", "index")
"""Columns that number the rows."""

Columns = dict[str, list[Any]]


def load_own_files(
    name: str, train_file: str | PathLike[str], validation_file: str | PathLike[str]
) -> "tuple[Task, DatasetDict]":
    """Return a task and its rows from two files.

    With the name of a known task the files hold that task's columns, and labels and metrics are its own. With
    any other name the task is told from the training file: the column `label` holds classes (words or whole
    numbers), or scores where a number has a decimal point; the texts are all other columns, one or two,
    `idx`, `id` and `index` left aside. Metrics are accuracy, and with two classes F1 of the second; for
    scores Pearson's and Spearman's correlation.

    Args:
        name: A known task, or a name of one's own.
        train_file: A file with one of `FORMATS`.
        validation_file: Another one; it may have another format.

    Returns:
        The task, and its rows as `load_task` returns them.

    Raises:
        ConfigurationError: A file that cannot be read, columns that are missing or too many, a label that is
            empty or unknown; names the file, the row and what was expected.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.csv").write_text("text,label\\ngood,yes\\nbad,no\\n")
        >>> _ = (folder / "dev.jsonl").write_text('{"text": "fine", "label": "yes"}')
        >>> task, rows = load_own_files("reviews", folder / "train.csv", folder / "dev.jsonl")
        >>> task.columns, task.labels, rows["validation"]["label"][:]
        (('text',), ('no', 'yes'), [1])
    """
    from datasets import DatasetDict

    from finetune_common.data.loading import as_dataset

    paths = {"train": Path(train_file), "validation": Path(validation_file)}
    files = {split: read_columns(path) for split, path in paths.items()}
    task = _known(TASKS[name]) if name in TASKS else _told_from(name, files["train"], paths["train"])
    task = replace(task, rows={split: len(next(iter(file.values()))) for split, file in files.items()})
    chosen = {split: _columns(task, file, paths[split]) for split, file in files.items()}
    rows = {split: as_dataset(task, columns) for split, columns in chosen.items()}
    return task, DatasetDict(rows)  # type: ignore[call-overload]


def _known(task: Task) -> Task:
    """Return a known task with one evaluation set."""
    metrics = tuple(
        dict.fromkeys(name.removesuffix("_matched").removesuffix("_mismatched") for name in task.metrics)
    )
    return replace(task, evaluation=("validation",), metrics=metrics, primary=metrics[0])


def _told_from(name: str, file: Columns, path: Path) -> Task:
    """Tell columns, labels and metrics from a training file."""
    if LABEL not in file:
        raise ConfigurationError(
            f"{path}: no column 'label' among {', '.join(file)}: rename the one that holds the label"
        )
    texts = tuple(column for column in file if column not in (LABEL, *NUMBERS))
    if len(texts) not in (1, 2):
        raise ConfigurationError(
            f"{path}: {len(texts)} columns beside the label ({', '.join(texts)}): leave the one or two that "
            "hold text"
        )
    labels = [_text(value) for value in file[LABEL] if value not in (None, "")]
    if any("." in label and _is_number(label) for label in labels):
        return Task(name, texts, (), ("pearson", "spearmanr"), "pearson", {}, label_range=(-inf, inf))
    whole = all(label.removeprefix("-").isdigit() for label in labels)
    classes = tuple(sorted(set(labels), key=int if whole else str))
    if len(classes) < 2:
        raise ConfigurationError(
            f"{path}: every label is {', '.join(classes) or 'empty'}: a task needs two classes, or scores "
            "with a decimal point"
        )
    metrics = ("accuracy", "f1") if len(classes) == 2 else ("accuracy",)
    return Task(name, texts, classes, metrics, "accuracy", {})


def _columns(task: Task, file: Columns, path: Path) -> Columns:
    """Pick a task's columns from a file; labels become class indices or numbers."""
    known = task.name in TASKS
    official = task.official_columns or task.columns
    found = {
        name: _named(file, path, (name, other)) for name, other in zip(task.columns, official, strict=True)
    }
    for name, texts in found.items():
        if wrong := [number for number, text in enumerate(texts, 1) if not isinstance(text, str)]:
            raise ConfigurationError(
                f"{path} row {wrong[0]}: {name} is {texts[wrong[0] - 1]!r}: expected text"
            )
    classes = {str(index): index for index in range(len(task.labels))} if known else {}
    classes |= {name: index for index, name in enumerate(task.labels)}
    labels = _named(file, path, (LABEL, task.official_label))
    parsed = [_label(task, classes, value, f"{path} row {number}") for number, value in enumerate(labels, 1)]
    return {**found, "label": parsed, "idx": list(range(len(labels)))}


def _label(task: Task, classes: dict[str, int], value: Any, place: str) -> float | int:
    text = _text(value)
    if not task.regression:
        if text not in classes:
            raise ConfigurationError(f"{place}: label {text!r}: allowed is {', '.join(classes)}")
        return classes[text]
    low, high = task.label_range
    if not _is_number(text) or not low <= float(text) <= high:
        raise ConfigurationError(f"{place}: label {text!r}: allowed is a number in [{low:g}, {high:g}]")
    return float(text)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_number(text: str) -> bool:
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _named(file: Columns, path: Path, names: Sequence[str]) -> list[Any]:
    for name in names:
        if name in file:
            return file[name]
    wanted = " or ".join(map(repr, dict.fromkeys(names)))
    raise ConfigurationError(f"{path}: no column {wanted} among {', '.join(file)}")


def read_columns(path: Path) -> Columns:
    """Return the columns of a file as they are there: text from csv and tsv, typed values from the others."""
    if path.suffix not in FORMATS:
        raise ConfigurationError(
            f"{path}: the name ends in {path.suffix!r}: give one of {', '.join(FORMATS)}"
        )
    try:
        if path.suffix == ".parquet":
            columns = _parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            columns = _separated(path)
        else:
            columns = _from_rows(_json_rows(path), path)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: {error.strerror or 'cannot be read'}: give a readable file"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 (byte {error.start})") from None
    if not columns or not next(iter(columns.values())):
        raise ConfigurationError(f"{path}: no rows")
    return columns


def _parquet(path: Path) -> Columns:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pydict()
    except pa.ArrowInvalid as error:
        raise ConfigurationError(f"{path}: not a parquet file: {' '.join(str(error).split())}") from None


def _separated(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter="," if path.suffix == ".csv" else "\t")
        header = next(lines, [])
        rows = []
        for cells in lines:
            if cells and len(cells) != len(header):
                raise ConfigurationError(
                    f"{path} line {lines.line_num}: {len(cells)} cells, expected {len(header)} "
                    f"({', '.join(header)})"
                )
            rows += [cells] if cells else []
    return {name: [cells[at] for cells in rows] for at, name in enumerate(header)}


def _json_rows(path: Path) -> Iterable[Any]:
    text = path.read_text(encoding="utf-8-sig")
    as_list = path.suffix == ".json" and text.lstrip().startswith("[")
    pieces = [text] if as_list else text.split("\n")
    rows: list[Any] = []
    for number, piece in enumerate(pieces, 1):
        try:
            found = json.loads(piece) if piece.strip() else []
        except ValueError as error:
            raise ConfigurationError(f"{path} line {number}: not JSON: {error}") from None
        rows += found if isinstance(found, list) else [found]
    return rows


def _from_rows(rows: Iterable[Any], path: Path) -> Columns:
    columns: Columns = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or (columns and row.keys() != columns.keys()):
            expected = f"the columns {', '.join(columns)}" if columns else "{column: value}"
            raise ConfigurationError(f"{path} row {number}: expected {expected}, found {str(row)[:80]}")
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns
