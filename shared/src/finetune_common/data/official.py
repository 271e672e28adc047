"""Read one file of the official GLUE layout."""

import warnings
from collections.abc import Callable
from math import isfinite
from pathlib import Path

from finetune_common.aliases import Rows
from finetune_common.errors import ConfigurationError, shown
from finetune_common.tasks import Task

__all__ = ["read_official"]


def read_official(task: Task, path: Path, *, labelled: bool = True) -> Rows:
    """Return the columns of one file, named and encoded as on the hub.

    Tab-separated UTF-8, a byte-order mark allowed; quotes are text, blank lines are skipped. Columns are
    found by their official or hub name in the header; CoLA's files without a header by position. Labels may
    be class names or their indices in the hub's order.

    Args:
        task: The file's task.
        path: The file.
        labelled: Whether a label column is required; without one, labels are -1 as on the hub.

    Returns:
        The text columns, `label` and `idx` (0 … rows-1), lists of equal length.

    Raises:
        ConfigurationError: Missing, not UTF-8, empty, a column missing, a row of another width, a label
            outside the task's; names the file, the line and what was expected.
    """
    lines = _lines(path)
    header = lines[0][1]
    if task.headerless and not _has(header, task, 0):
        header, body = list(task.headerless), lines
    else:
        body = lines[1:]
    if not body:
        raise ConfigurationError(f"{path}: no rows after the header")
    texts = [_position(header, path, _names(task, i)) for i in range(len(task.columns))]
    label_names = {task.official_label, "label"}
    labelled = labelled or not label_names.isdisjoint(header)
    label_at = _position(header, path, (task.official_label, "label")) if labelled else None
    body = _check_widths(task, path, header, body)

    columns: Rows = {
        name: [cells[place] for _, cells in body] for name, place in zip(task.columns, texts, strict=True)
    }
    if label_at is None:
        columns["label"] = [-1] * len(body)
    else:
        parse = _score(task) if task.regression else _class(task)
        columns["label"] = [_parse(parse, cells[label_at], path, number) for number, cells in body]
    columns["idx"] = list(range(len(body)))
    return columns


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return (line number from 1, cells) of every line that is not blank."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file; it is part of the official GLUE layout") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path} line {line}: not UTF-8 (byte {content[error.start]:#04x})"
        ) from None
    numbered = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    lines = [(number, line.split("\t")) for number, line in numbered if line.strip(" ")]
    if not lines:
        raise ConfigurationError(f"{path}: the file is empty")
    return lines


def _names(task: Task, column: int) -> tuple[str, str]:
    return task.official_columns[column], task.columns[column]


def _has(header: list[str], task: Task, column: int) -> bool:
    return any(name in header for name in _names(task, column))


def _position(header: list[str], path: Path, names: tuple[str, str]) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    wanted = " or ".join(map(repr, dict.fromkeys(names)))
    raise ConfigurationError(f"{path} line 1: no column {wanted} in the header ({', '.join(header)[:200]})")


def _check_widths(
    task: Task, path: Path, header: list[str], body: list[tuple[int, list[str]]]
) -> list[tuple[int, list[str]]]:
    width = len(header)
    broken = [(number, len(cells)) for number, cells in body if len(cells) != width]
    if not broken:
        return body
    number, count = broken[0]
    if not task.drops_broken_rows:
        raise ConfigurationError(
            f"{path} line {number}: {count} tab-separated columns, expected {width} ({', '.join(header)})"
        )
    warnings.warn(
        f"{path}: {len(broken)} rows without {width} columns left out, as on the hub (first: line {number})",
        stacklevel=4,
    )
    return [(number, cells) for number, cells in body if len(cells) == width]


def _class(task: Task) -> Callable[[str], int]:
    indices = {name: index for index, name in enumerate(task.labels)}
    indices |= {str(index): index for index in range(len(task.labels))}

    def parse(cell: str) -> int:
        if cell not in indices:
            raise ValueError(f"allowed is {', '.join(indices)}")
        return indices[cell]

    return parse


def _score(task: Task) -> Callable[[str], float]:
    low, high = task.label_range

    def parse(cell: str) -> float:
        try:
            score = float(cell)
        except ValueError:
            score = float("nan")
        if not (isfinite(score) and low <= score <= high):
            raise ValueError(f"allowed is a number in [{low:g}, {high:g}]")
        return score

    return parse


def _parse(parse: Callable[[str], float], cell: str, path: Path, number: int) -> float:
    try:
        return parse(cell)
    except ValueError as error:
        raise ConfigurationError(f"{path} line {number}: label {shown(cell)}: {error}") from None
