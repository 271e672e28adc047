"""Predictions of a trained model for the rows of files, or for lines on standard input."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from finetune_common.data.choices import Choices
from finetune_common.data.columns import NUMBERING
from finetune_common.data.files import read_table
from finetune_common.data.kinds import parts
from finetune_common.errors import ConfigurationError, check_number, shown
from finetune_common.metrics import compute_metrics, multi_hot
from finetune_common.tasks import Task
from glue_harness.config.own_rows import choices_of
from glue_harness.run.assembly import open_model, read_config
from glue_harness.run.predictor import Predictor
from glue_harness.run.records import write_whole

__all__ = ["predict"]

Columns = dict[str, list[Any]]
WRITTEN = (".csv", ".tsv", ".jsonl", ".parquet")
"""Endings of output files."""


def predict(
    model: str,
    files: Sequence[Path],
    output: Path | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    task: str | None = None,
) -> dict[str, Any]:
    """Predict the rows of files, and write them with the predictions.

    The rows keep their columns. New are `label` and a `score_<name>` for each label, or `score` for a
    regression; a name that the rows already have gets the prefix `predicted_`.

    Args:
        model: Folder of a run or of a model, or a hub name.
        files: csv, tsv, json, jsonl or parquet, all with the same columns; none for standard input, one text
            per line (for pairs two, separated by a tab).
        output: csv, tsv, jsonl or parquet; None for standard output, in the format of the first file.
        batch_size: Rows at a time.
        max_length: Tokens to which a text is truncated; by default as in the run's training.
        task: Which task, if a run learned several.

    Returns:
        `rows`, `seconds` of prediction, `metrics` (empty without labels), and `without`: why there are none.

    Raises:
        ConfigurationError: A model, file or column that cannot be used; nothing is written then.
    """
    check_number("batch_size", batch_size, at_least=1)
    ending = _ending(files, output)
    predictor = open_model(model, task)
    if max_length is not None:
        check_number("max_length", max_length, at_least=4)
        predictor.max_length = max_length
    columns = _joined(files, _choices(model)) if files else _lines(predictor.task)
    texts = _texts(predictor.task, columns, str(files[0]) if files else "standard input")
    began = time.perf_counter()
    logits = _logits(predictor, [columns[name] for name in texts], batch_size)
    seconds = time.perf_counter() - began
    scores = predictor.scores(logits)
    metrics, without = _metrics(predictor.task, columns, logits)
    try:
        _write(columns | _named(columns, _answers(predictor, scores)), ending, output)
    except OSError as error:
        raise ConfigurationError(
            f"--output {output}: {error.strerror}: give a file that can be written"
        ) from None
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


def _choices(model: str) -> Choices:
    """Return the delimiter and encoding of the run's training files."""
    if not (Path(model) / "config.yaml").is_file():
        return Choices()
    settings = read_config(Path(model)).as_dict()
    return choices_of({name: settings[name] for name in ("delimiter", "encoding")})


def _joined(files: Sequence[Path], choices: Choices) -> Columns:
    """Return the rows of all files, one after the other."""
    joined = read_table(files[0], choices).columns
    for file in files[1:]:
        more = read_table(file, choices).columns
        if more.keys() != joined.keys():
            raise ConfigurationError(
                f"{file}: its columns are {', '.join(more)}, those of {files[0]} {', '.join(joined)}: give "
                "files with the same columns"
            )
        joined = {name: values + more[name] for name, values in joined.items()}
    return joined


def _lines(task: Task) -> Columns:
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
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _texts(task: Task, columns: Columns, place: str) -> list[str]:
    """Return the columns of texts: the task's by name, else all columns that hold only text."""
    official = task.official_columns or task.columns
    candidates = [
        next((name for name in both if name in columns), None)
        for both in zip(task.columns, official, strict=True)
    ]
    if not task.columns:
        aside = ("label", "labels", *NUMBERING)
        candidates = [name for name in columns if name not in aside and isinstance(columns[name][0], str)]
        if len(candidates) > 2:
            raise ConfigurationError(
                f"{place}: {len(candidates)} columns could be the text "
                f"({', '.join(map(str, candidates))[:200]}): keep only the one or two that are"
            )
    names = [name for name in candidates if name is not None]
    if not names or len(names) != len(candidates):
        wanted = " and ".join(map(repr, task.columns)) or "that holds text"
        raise ConfigurationError(
            f"{place}: no column {wanted} among {', '.join(columns)}: rename the columns of text"
        )
    for name in names:
        if wrong := [row for row, text in enumerate(columns[name], 1) if not isinstance(text, str)]:
            value = columns[name][wrong[0] - 1]
            raise ConfigurationError(f"{place} row {wrong[0]}: {name} is {shown(value)}: expected text")
    return names


def _logits(predictor: Predictor, texts: list[list[str]], batch_size: int) -> np.ndarray:
    """Return the model's output, with a progress bar if standard error is a terminal."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict", total=len(texts[0]))
        return predictor.logits(
            *texts, batch_size=batch_size, advance=lambda rows: bar.update(task, advance=rows)
        )


def _answers(predictor: Predictor, scores: np.ndarray) -> Columns:
    if predictor.task.regression:
        return {"score": predictor.answers(scores)}
    each = {f"score_{name}": scores[:, index].tolist() for index, name in enumerate(predictor.labels)}
    return {"label": predictor.answers(scores), **each}


def _named(columns: Columns, answers: Columns) -> Columns:
    """Return the answers under column names that the rows do not use."""
    named: Columns = {}
    for name, values in answers.items():
        while name in columns:
            name = f"predicted_{name}"
        named[name] = values
    return named


def _metrics(task: Task, columns: Columns, logits: np.ndarray) -> tuple[dict[str, float], str]:
    """Return the task's metrics over the rows that have a label, or why there are none."""
    column = next((name for name in ("label", task.official_label) if name in columns), None)
    if column is None:
        return {}, ""
    known = {str(index): index for index in range(len(task.labels))}
    known |= {name: index for index, name in enumerate(task.labels)}
    absent = (None, "") if task.regression else (None, "", -1, "-1")  # -1 in GLUE's test files
    rows: list[int] = []
    labels: list[Any] = []
    for row, value in enumerate(columns[column]):
        if not isinstance(value, list) and value in absent and str(value) not in known:
            continue
        try:
            labels.append(_label(task, known, value))
        except (KeyError, ValueError, TypeError):
            allowed = "a number" if task.regression else ", ".join(task.labels)[:200]
            return {}, f"no metrics: {column} of row {row + 1} is {shown(value)}, allowed is {allowed}"
        rows.append(row)
    if not rows:
        return {}, f"no metrics: {column} is empty"
    names = (name.removesuffix("_matched").removesuffix("_mismatched") for name in task.metrics)
    judged = replace(task, evaluation=("validation",), metrics=tuple(dict.fromkeys(names)))
    return compute_metrics(judged, logits[rows], np.asarray(labels)), ""


def _label(task: Task, known: Mapping[str, int], value: Any) -> Any:
    if task.several:
        return multi_hot([[known[part] for part in parts(value)]], task.num_labels)[0]
    return float(value) if task.regression else known[str(value)]


def _write(columns: Columns, ending: str, output: Path | None) -> None:
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
