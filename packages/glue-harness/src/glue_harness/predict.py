"""Predictions of a trained model for the rows of files, or for lines on standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.console import Console
from rich.progress import Progress

from finetune_common.aliases import Rows
from finetune_common.data.columns import find_label, find_texts, read_texts
from finetune_common.data.files import read_table
from finetune_common.data.labels import known_labels, learned_labels, name_indexed_classes, unlabelled
from finetune_common.data.messages import counted, cut, listed, refusal
from finetune_common.data.tables import Table
from finetune_common.data.values import finite, spelled
from finetune_common.errors import ConfigurationError, check_number
from finetune_common.metrics import compute_metrics, multi_hot
from finetune_common.tasks import TASKS, Task
from glue_harness.run.assembly import open_model
from glue_harness.run.predictor import Predictor
from glue_harness.run.records import write_whole

__all__ = ["predict"]

WRITTEN = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of output files."""


class Predicted(TypedDict):
    """What `predict` did.

    Attributes:
        rows: Their number.
        seconds: Of prediction.
        metrics: Empty without labels.
        without: Which rows the metrics leave out, or why there are none; empty if they are of all rows.
    """

    rows: int
    seconds: float
    metrics: dict[str, float]
    without: str


def predict(
    model: str,
    files: Sequence[Path],
    output: Path | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    task: str | None = None,
) -> Predicted:
    """Predict the rows of files, and write them with the predictions.

    Files are read as those of the model's training. The rows keep their columns. New are `label` and a
    `score_<name>` for each label, or `score` for a regression; a name that the rows already have gets the
    prefix `predicted_`.

    Args:
        model: Folder of a run or of a model, or a hub name.
        files: csv, tsv, json, jsonl or parquet, all with the same columns; none for standard input, one text
            per line (for pairs two, separated by a tab).
        output: csv, tsv, jsonl or parquet; None for standard output, in the format of the first file.
        batch_size: Rows at a time.
        max_length: Tokens to which a text is truncated; by default as in the run's training.
        task: Which task, if a run learned several.

    Returns:
        What was done.

    Raises:
        ConfigurationError: A model, file or column that cannot be used. Nothing is written then.
    """
    check_number("batch_size", batch_size, at_least=1)
    ending = _ending(files, output)
    predictor = open_model(model, task)
    if max_length is not None:
        check_number("max_length", max_length, at_least=4)
        predictor.max_length = max_length
    choices = replace(predictor.choices, text_columns=(), label_column=None)  # a file need not have labels
    tables = [read_table(file, choices) for file in files] if files else [_lines(predictor.task)]
    columns = _joined(tables)
    label = _label_column(predictor, columns)
    names = _text_columns(predictor, columns, label, tables[0].name)
    texts = [[text for table in tables for text in read_texts(table, name)] for name in names]
    began = time.perf_counter()
    logits = _logits(predictor, texts, batch_size)
    seconds = time.perf_counter() - began
    scores = predictor.scores(logits)
    try:
        _write(columns | _named(columns, _answers(predictor, scores)), ending, output)
    except OSError as error:
        raise ConfigurationError(
            f"--output {output}: {error.strerror}: give a file that can be written"
        ) from None
    metrics, without = _metrics(predictor, tables, label, logits)
    return {"rows": len(scores), "seconds": seconds, "metrics": metrics, "without": without}


def _ending(files: Sequence[Path], output: Path | None) -> str:
    """Return the output format; a file's name ends in its format."""
    if output is None:
        first = files[0].suffix.lower() if files else ".tsv"
        return first if first in (".csv", ".tsv", ".jsonl") else ".jsonl"
    if output.suffix.lower() not in WRITTEN:
        raise ConfigurationError(
            f"--output {output}: cannot write {output.suffix!r} files: give one of {', '.join(WRITTEN)}"
        )
    return output.suffix.lower()


def _joined(tables: Sequence[Table]) -> Rows:
    """Return the rows of all files, one after the other."""
    for table in tables[1:]:
        if table.columns.keys() != tables[0].columns.keys():
            raise ConfigurationError(
                f"{table.name}: its columns are {', '.join(table.columns)}, those of {tables[0].name} "
                f"{', '.join(tables[0].columns)}: give files with the same columns"
            )
    return {name: [value for table in tables for value in table.columns[name]] for name in tables[0].columns}


def _lines(task: Task) -> Table:
    """Return the lines of standard input: one text each, or several separated by tabs for pairs."""
    names = task.columns or ("text",)
    rows = [line.rstrip("\r\n").split("\t", len(names) - 1) for line in sys.stdin]
    if not rows:
        raise ConfigurationError("standard input has no lines: give one text per line, or name files")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ConfigurationError(
                f"standard input line {number} has only one text: give {' and '.join(names)} with a tab "
                "between them"
            )
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return Table("standard input", columns, range(1, len(rows) + 1))


def _known(task: Task) -> Task | None:
    """Return a known task; a model without a run has no columns, and only the name of its folder."""
    return TASKS.get(task.name) if task.columns else None


def _label_column(predictor: Predictor, columns: Rows) -> str | None:
    """Return the column of the label: that of the training, else the one that is called so."""
    task, known = predictor.task, _known(predictor.task)
    name = predictor.choices.label_column
    if name is None and task.columns and known is None:
        name = task.official_label
    if name is None:
        return find_label(columns, known)
    return name if name in columns else None


def _text_columns(predictor: Predictor, columns: Rows, label: str | None, place: str) -> list[str]:
    """Return the columns of texts: the task's by name, else the ones that hold words."""
    task = predictor.task
    if not task.columns:
        return _columns_of_words(columns, label, place)
    alternatives = (predictor.choices.text_columns, task.columns, task.official_columns)
    candidates = [
        next((name for name in names if name in columns), None)
        for names in zip(*filter(None, alternatives), strict=True)
    ]
    names = [name for name in candidates if name is not None]
    if len(names) != len(candidates):
        raise ConfigurationError(
            f"{place}: no column {' and '.join(map(repr, task.columns))} among {', '.join(columns)}: rename "
            "the columns of text"
        )
    return names


def _columns_of_words(columns: Rows, label: str | None, place: str) -> list[str]:
    """Return the one or two columns that hold words, or the only column, whatever it holds."""
    others = [name for name in columns if name != label]
    words, aside = (others, {}) if len(others) == 1 else find_texts(columns, label)
    if not words:
        reasons = listed((f"{name} ({why})" for name, why in aside.items()), 160) or "there is no other"
        raise refusal(
            place, f"no column holds words apart from the label: {reasons}: keep only the column of text"
        )
    if len(words) > 2:
        raise refusal(
            place,
            f"{len(words)} columns could be the text ({listed(words)}): keep only the one or two that are",
        )
    return words


def _logits(predictor: Predictor, texts: list[list[str]], batch_size: int) -> np.ndarray:
    """Return the model's output, with a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict", total=len(texts[0]))
        return predictor.logits(
            *texts, batch_size=batch_size, advance=lambda rows: bar.update(task, advance=rows)
        )


def _answers(predictor: Predictor, scores: np.ndarray) -> Rows:
    if predictor.task.regression:
        return {"score": predictor.answers(scores)}
    each = {f"score_{name}": scores[:, index].tolist() for index, name in enumerate(predictor.labels)}
    return {"label": predictor.answers(scores), **each}


def _named(columns: Rows, answers: Rows) -> Rows:
    """Return the answers under column names that the rows do not use."""
    named: Rows = {}
    for name, values in answers.items():
        while name in columns:
            name = f"predicted_{name}"
        named[name] = values
    return named


def _metrics(
    predictor: Predictor, tables: Sequence[Table], label: str | None, logits: np.ndarray
) -> tuple[dict[str, float], str]:
    """Return the task's metrics over the rows that have a label, and what they leave out."""
    if label is None:
        return {}, ""
    task = predictor.task
    names = (name.removesuffix("_matched").removesuffix("_mismatched") for name in task.metrics)
    judged = replace(task, evaluation=("validation",), metrics=tuple(dict.fromkeys(names)))
    try:
        labels = [found for table in tables for found in _labels(predictor, table, label)]
        rows = [row for row, found in enumerate(labels) if found is not None]
        if not rows:
            return {}, f"no metrics: no row has a label in column {cut(label)}"
        known: Any = [labels[row] for row in rows]
        truth = multi_hot(known, task.num_labels) if task.several else np.asarray(known)
        metrics = compute_metrics(judged, logits[rows], truth)
    except ConfigurationError as error:
        return {}, f"no metrics: {error}"
    left_out = [row for row, found in enumerate(labels) if found is None]
    return metrics, f"the metrics leave out {counted(left_out)} without a label" if left_out else ""


def _labels(predictor: Predictor, table: Table, column: str) -> list[object]:
    """Return each row's label, read as in training; None where there is none."""
    table = replace(table, columns={column: table.columns[column]})  # the rows are written as they were read
    name_indexed_classes(table, column)
    absent, known = set(unlabelled(table, column)), _known(predictor.task)
    if known is not None:  # GLUE's test rows have -1
        absent |= {row for row, value in enumerate(table.columns[column]) if finite(spelled(value)) == -1}
    labels: list[object] = [None] * len(table)
    if rows := [row for row in range(len(table)) if row not in absent]:
        labelled, choices = table.select(rows), predictor.choices
        if known is None:
            reader = learned_labels(predictor.task, labelled, column, choices)
        else:
            spellings = map(spelled, labelled.columns[column])
            reader = known_labels(known, spellings, fold=choices.label_spelling == "fold")
        for row, found in zip(rows, reader.encode(labelled, column), strict=True):
            labels[row] = found
    return labels


def _write(columns: Rows, ending: str, output: Path | None) -> None:
    """Write rows to a file, which appears whole, or as text to standard output."""
    import pandas as pd
    import pyarrow as pa
    from pyarrow import parquet

    if ending == ".parquet" and output is not None:
        beside = output.with_name(f".{output.name}")
        parquet.write_table(pa.table(columns), beside)
        beside.replace(output)
        return
    if ending == ".jsonl":
        rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
        text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    else:
        table = pd.DataFrame(columns, dtype=object)  # values stay as they were read
        text = table.to_csv(sep="," if ending == ".csv" else "\t", index=False)
    if output is None:
        print(text, end="")
    else:
        write_whole(output, text)
