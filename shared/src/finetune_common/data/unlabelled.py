"""Rows without a label: left out on request; a test split without any label is not scored."""

from collections.abc import Mapping

from finetune_common.data.choices import Choices
from finetune_common.data.columns import Columns
from finetune_common.data.labels import name_indexed_classes, unlabelled
from finetune_common.data.messages import counted, cut, refusal
from finetune_common.data.tables import Table
from finetune_common.data.values import finite, spelled

__all__ = ["why_unscored", "without_unlabelled"]


def why_unscored(train: Table, trained: str, test: Table, label: str | None) -> str:
    """Say why a test split cannot be scored, as most of the hub's benchmarks have; empty if it can.

    Args:
        train: The training rows.
        trained: Their column of labels.
        test: The test rows.
        label: Their column of labels.
    """
    if label not in test.columns:
        return f"no column {cut(label or trained)}"
    name_indexed_classes(test, label)
    rows = _missing(test, label, minus_one=_never_negative(train, trained))
    return "no row has a label" if len(rows) == len(test) else ""


def without_unlabelled(
    tables: Mapping[str, Table], roles: Mapping[str, Columns], choices: Choices
) -> tuple[dict[str, Table], dict[str, int]]:
    """Return the tables without unlabelled rows, and the number of those rows.

    A label -1 is missing outside the training rows if these have no label below 0.

    Raises:
        ConfigurationError: A missing column, missing labels without `drop_unlabelled`, no label at all.
    """
    labelled: dict[str, Table] = {}
    left_out: dict[str, int] = {}
    for split, table in tables.items():
        table.require(roles[split].texts, "--text-columns")
        table.require([roles[split].label], "--label-column")
        name_indexed_classes(table, roles[split].label)
    never_negative = _never_negative(tables["train"], roles["train"].label)
    for split, table in tables.items():
        label = roles[split].label
        rows = _missing(table, label, minus_one=never_negative and split != "train")
        if rows and not choices.drop_unlabelled:
            raise refusal(
                table.name,
                f"labels missing in {counted(rows)}: {table.where(rows)}; --drop-unlabelled leaves them out",
            )
        if len(rows) == len(table):
            raise refusal(
                table.name, f"no row has a label in column {cut(label)}: --label-column names another"
            )
        labelled[split], left_out[split] = table.without(rows) if rows else table, len(rows)
    return labelled, left_out


def _never_negative(train: Table, column: str) -> bool:
    numbers = map(finite, set(map(spelled, train.columns[column])))
    return all(number is None or number >= 0 for number in numbers)


def _missing(table: Table, column: str, *, minus_one: bool) -> list[int]:
    """Return the rows without a label; with `minus_one` also those labelled -1."""
    rows = unlabelled(table, column)
    if minus_one:
        values = table.columns[column]
        rows = sorted({*rows, *(row for row, value in enumerate(values) if finite(spelled(value)) == -1)})
    return rows
