"""Read a task from a user's files, as options say or as the files show."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_common.aliases import JsonObject, Rows
from finetune_common.data.choices import Choices
from finetune_common.data.columns import Columns, choose_columns, find_label, read_texts
from finetune_common.data.content import fingerprint
from finetune_common.data.facts import always_the_usual, count_labels, count_texts
from finetune_common.data.files import read_table
from finetune_common.data.labels import Labels, find_labels, known_labels
from finetune_common.data.messages import cut, listed, refusal
from finetune_common.data.schema import Schema, Source
from finetune_common.data.splitting import with_share
from finetune_common.data.tables import Table
from finetune_common.data.unlabelled import why_unscored, without_unlabelled
from finetune_common.data.values import spelled
from finetune_common.errors import ConfigurationError
from finetune_common.metrics import metrics_of
from finetune_common.tasks import TASKS, Task

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = ["OwnRows", "load_own_files", "read_own_files", "read_own_tables"]


@dataclass(frozen=True, eq=False)
class OwnRows:
    """A task read from files, and its rows.

    Attributes:
        task: The task.
        splits: Split → the text columns, `label` and `idx`.
        schema: How the files were read.
    """

    task: Task
    splits: Mapping[str, Rows]
    schema: Schema

    def datasets(self) -> "DatasetDict":
        """Return the rows as `load_task` does."""
        from datasets import DatasetDict

        from finetune_common.data.loading import as_dataset

        return DatasetDict({split: as_dataset(self.task, rows) for split, rows in self.splits.items()})

    def content(self) -> JsonObject:
        """Return the identity of the rows, wherever their files lie: see `fingerprint`."""
        return fingerprint(self.task, self.splits)

    def with_scores_of_no_model(self) -> Schema:
        """Return the schema with the score of a constant answer; this imports scikit-learn."""
        evaluated = self.splits.get("validation", self.splits["train"])
        return replace(self.schema, usual=always_the_usual(self.task, self.splits["train"], evaluated))


def load_own_files(
    name: str,
    train_file: str | PathLike[str],
    validation_file: str | PathLike[str] | None = None,
    test_file: str | PathLike[str] | None = None,
    choices: Choices | None = None,
) -> "tuple[Task, DatasetDict]":
    """Return a task and its rows from files; ambiguities are named in a warning.

    See `read_own_files`, which also returns the schema.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "train.csv").write_text("text,label\\ngood,yes\\nbad,no\\n")
        >>> dev = '{"text": "fine", "label": "yes"}\\n{"text": "poor", "label": "no"}'
        >>> _ = (folder / "dev.jsonl").write_text(dev)
        >>> task, rows = load_own_files("reviews", folder / "train.csv", folder / "dev.jsonl")
        >>> task.columns, task.labels, rows["validation"]["label"][:]
        (('text',), ('no', 'yes'), [1, 0])
    """
    contents = read_own_files(name, train_file, validation_file, test_file, choices)
    for question in contents.schema.questions:
        warnings.warn(question, stacklevel=2)
    return contents.task, contents.datasets()


def read_own_files(
    name: str,
    train_file: str | PathLike[str],
    validation_file: str | PathLike[str] | None = None,
    test_file: str | PathLike[str] | None = None,
    choices: Choices | None = None,
    *,
    strict: bool = False,
) -> OwnRows:
    """Read a task from files: csv, tsv, json, jsonl, parquet or arrow, also gzipped.

    If `name` is a known task, the files have its columns, labels and metrics. Otherwise the task is found
    from the training file: see `choose_columns`, `find_kind` and `find_labels`. Nothing heavy is imported
    for text files.

    Args:
        name: A known task, or any new name.
        train_file: A file with one of `FORMATS`.
        validation_file: Another file, of any format; without it `choices.validation_share` is needed.
        test_file: Rows that are only scored; no choice depends on them.
        choices: The user's choices; the rest is found from the files.
        strict: Refuse ambiguities, instead of noting them in `schema.questions`.

    Raises:
        ConfigurationError: A missing file or column, missing or unknown labels; one line of at most 400
            characters with the rows' lines and the remedy.

    Examples:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tickets.csv"
        >>> lines = "".join(f"{i},late {i},{'ab'[i % 2]}\\n" for i in range(20))
        >>> _ = file.write_text(",text,label\\n" + lines)
        >>> tickets = read_own_files("tickets", file, choices=Choices(validation_share=0.2))
        >>> tickets.schema.aside, len(tickets.splits["validation"]["text"])
        ({'Unnamed: 0': 'an index: it has no name'}, 4)
    """
    choices = choices or Choices()
    paths = {"train": train_file, "validation": validation_file, "test": test_file}
    given = {split: path for split, path in paths.items() if path is not None}
    for path in given.values():
        if not Path(path).exists():
            raise refusal(path, "No such file: give a readable file")
    if ("validation" in given) == (choices.validation_share is not None):
        raise refusal(
            train_file,
            "two sources of rows to evaluate on: give a validation file or a validation share"
            if "validation" in given
            else "no rows to evaluate on: give --validation-file FILE, or --validation-share 0.1 for a "
            "part of this file",
        )
    return read_own_tables(
        name, {split: read_table(path, choices) for split, path in given.items()}, choices, strict=strict
    )


def read_own_tables(
    name: str,
    tables: Mapping[str, Table],
    choices: Choices | None = None,
    *,
    strict: bool = False,
    unused: Mapping[str, str] | None = None,
) -> OwnRows:
    """Find a task from tables, `train` among them; see `read_own_files`.

    Args:
        name: A known task, or any new name.
        tables: Split → rows.
        choices: The user's choices.
        strict: Refuse ambiguities.
        unused: A dataset's splits that are not among the tables → why. A test split without any label joins
            them; that of a file, where this is None, is refused.
    """
    choices = choices or Choices()
    known = TASKS.get(name)
    if known is not None and choices.kind not in (None, known.kind):
        raise ConfigurationError(
            f"--kind {choices.kind}: task {name!r} is known and has {known.kind}: leave it out"
        )
    columns = choose_columns(tables["train"], choices, known)
    if unused is not None and "test" in tables:
        test = tables["test"]
        label = find_label(test.columns, known) if known and not choices.label_column else columns.label
        if why := why_unscored(tables["train"], columns.label, test, label):
            unused = {**unused, "test": why}
            tables = {split: table for split, table in tables.items() if split != "test"}
    if known is None:
        roles = dict.fromkeys(tables, columns)
    else:  # each file may have the hub's names or the official ones
        roles = {split: choose_columns(table, choices, known) for split, table in tables.items()}
    tables, unlabelled_rows = without_unlabelled(tables, roles, choices)
    if known is None:
        labels = find_labels(tables, columns.label, choices)
    else:
        spellings = {spelled(value) for s, table in tables.items() for value in table.columns[roles[s].label]}
        labels = known_labels(known, spellings, fold=choices.label_spelling == "fold")
    questions = (*columns.questions, *labels.questions)
    _refuse_to_guess(questions if strict else ())
    task = _task(name, known, columns, labels, choices)
    splits = {split: _rows(task, roles[split], labels, table) for split, table in tables.items()}
    files = {split: Path(table.name).name for split, table in tables.items()}
    if choices.validation_share is not None:
        splits, files = with_share(task, splits, files, choices.validation_share)
    if known is None and choices.kind is None:
        place = tables.get("validation", tables["train"]).name
        questions += _classes_never_evaluated(task, splits, place)
        _refuse_to_guess(questions if strict else ())
    task = replace(task, rows={split: len(rows["idx"]) for split, rows in splits.items()})
    schema = _schema(task, columns, labels, splits, files, unlabelled_rows, questions)
    return OwnRows(task, splits, replace(schema, unused=dict(unused or {})))


def _refuse_to_guess(questions: tuple[str, ...]) -> None:
    if questions:
        raise refusal("to decide", questions[0])


def _classes_never_evaluated(task: Task, splits: Mapping[str, Rows], place: str) -> tuple[str, ...]:
    """Ask about classes that are trained but never evaluated."""
    counts = count_labels(task, splits)
    if "validation" not in counts:
        return ()
    trained, evaluated = counts["train"], counts["validation"]
    absent = [name for name in task.labels if trained[name] and not evaluated[name]]
    if not absent:
        return ()
    names = listed(map(cut, absent))
    return (
        f"{place}: no row with label {names} to evaluate on, which training rows have: --kind {task.kind} "
        "confirms that it is not evaluated",
    )


def _task(name: str, known: Task | None, columns: Columns, labels: Labels, choices: Choices) -> Task:
    if known is not None:
        task = _with_one_evaluation_set(known)
    else:
        task = Task(
            name, columns.texts, labels.names, (), "", {}, official_label=columns.label,
            label_range=(-inf, inf), several=labels.kind.name == "labels",
        )  # fmt: skip
    metrics = metrics_of(task, choices.metric)
    return replace(task, metrics=metrics, primary=choices.metric or metrics[0])


def _with_one_evaluation_set(task: Task) -> Task:
    metrics = tuple(
        dict.fromkeys(name.removesuffix("_matched").removesuffix("_mismatched") for name in task.metrics)
    )
    return replace(task, evaluation=("validation",), metrics=metrics, primary=metrics[0])


def _rows(task: Task, columns: Columns, labels: Labels, table: Table) -> Rows:
    texts = {name: _texts(table, of) for name, of in zip(task.columns, columns.texts, strict=True)}
    return {**texts, "label": labels.encode(table, columns.label), "idx": list(range(len(table)))}


def _texts(table: Table, column: str) -> list[str]:
    values = read_texts(table, column)
    if not any(value and not value.isspace() for value in values):
        raise refusal(table.name, f"column {cut(column)} is empty in every row: --text-columns names another")
    return values


def _schema(
    task: Task,
    columns: Columns,
    labels: Labels,
    splits: Mapping[str, Rows],
    files: Mapping[str, str],
    unlabelled_rows: Mapping[str, int],
    questions: tuple[str, ...],
) -> Schema:
    texts, classes = count_texts(task, splits), count_labels(task, splits)
    sources = {
        split: Source(
            files[split],
            len(rows["idx"]),
            unlabelled=unlabelled_rows.get(split, 0),
            labels=classes.get(split, {}),
            **texts[split],
        )
        for split, rows in splits.items()
    }
    return Schema(
        task.name, sources, columns.texts, columns.label, labels.kind.name, labels.kind.because, task.labels,
        task.metrics, task.primary, columns.aside, questions=questions,
    )  # fmt: skip
