"""The identity of rows, wherever they lie: a hash of their content, and the difference of two."""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, cast

from finetune_common.aliases import JsonObject, Rows
from finetune_common.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["changed_rows", "fingerprint", "rows_digest"]

_CHUNK = 2048


def rows_digest(rows: "Dataset | Rows", columns: Sequence[str]) -> str:
    """Return a hash of these columns' values, in the order of the rows; column names do not count.

    Args:
        rows: A `datasets.Dataset`, or column → values; both give the same hash.
        columns: The columns to hash.

    Examples:
        >>> rows_digest({"a": ["x", "y"], "n": [1, 2]}, ["a"]) == rows_digest({"b": ["x", "y"]}, ["b"])
        True
    """
    digest = sha256()
    for chunk in _chunks(rows, columns):
        digest.update(json.dumps(chunk).encode())
    return digest.hexdigest()


def _chunks(
    rows: "Dataset | Mapping[str, list[object]]", columns: Sequence[str]
) -> Iterator[list[Sequence[object]]]:
    if isinstance(rows, Mapping):
        values = [_as_stored(rows[name]) for name in columns]
        for start in range(0, len(values[0]), _CHUNK):
            yield [column[start : start + _CHUNK] for column in values]
    else:
        for chunk in rows.select_columns(list(columns)).iter(_CHUNK):
            yield [chunk[name] for name in columns]


def _as_stored(values: Sequence[object]) -> Sequence[object]:
    """Return scores rounded to 32 bits."""
    if not values or not isinstance(values[0], float):
        return values
    return array("f", cast("Sequence[float]", values)).tolist()  # all values of a column are of one kind


def fingerprint(task: Task, splits: "Mapping[str, Dataset | Rows]") -> JsonObject:
    """Return plain data that identifies a task's rows: its labels, and each split's row count and hash.

    Examples:
        >>> task = Task("mine", ("text",), ("no", "yes"), ("accuracy",), "accuracy", {})
        >>> identity = fingerprint(task, {"train": {"text": ["a"], "label": [1]}})
        >>> identity["labels"], identity["splits"]["train"]["rows"]
        (['no', 'yes'], 1)
    """
    columns = [*task.columns, "label"]
    return {
        "labels": list(task.labels),
        "splits": {
            str(split): {"rows": _count(rows), "sha256": rows_digest(rows, columns)}
            for split, rows in splits.items()
        },
    }


def _count(rows: "Dataset | Rows") -> int:
    return len(next(iter(rows.values()))) if isinstance(rows, Mapping) else len(rows)


def changed_rows(before: JsonObject, now: JsonObject) -> str:
    """Say what differs between two fingerprints; empty if they are equal.

    Examples:
        >>> before = {"labels": [], "splits": {"train": {"rows": 400, "sha256": "a"}}}
        >>> changed_rows(before, {"labels": [], "splits": {"train": {"rows": 900, "sha256": "b"}}})
        'train had 400 rows, now 900'
    """
    for split in dict.fromkeys([*before["splits"], *now["splits"]]):
        old, new = before["splits"].get(split), now["splits"].get(split)
        if old is None or new is None:
            return f"{split} rows are {'new' if old is None else 'gone'}"
        if old["rows"] != new["rows"]:
            return f"{split} had {old['rows']:,} rows, now {new['rows']:,}"
        if old["sha256"] != new["sha256"] and before["labels"] == now["labels"]:
            return f"{split} has {new['rows']:,} rows as before, but others"
    return "" if before["labels"] == now["labels"] else "the labels are others"
