"""Read csv and tsv files: a header, quotes by ", rows of equal width."""

import csv
import sys
from array import array
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from finetune_common.data.choices import Choices
from finetune_common.data.messages import cut, listed, numbered, refusal
from finetune_common.data.tables import Table

__all__ = ["read_separated"]

UNNAMED = "Unnamed: "
"""Name of a column without a name, as in pandas."""

OTHERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
"""Delimiters to propose if the given one separates nothing."""


@contextmanager
def _cells_of_any_length() -> Generator[None, None, None]:
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def read_separated(path: Path, file: TextIO, delimiter: str, choices: Choices) -> Table:
    """Return the columns of a csv or tsv file; blank lines are skipped.

    Args:
        path: For messages.
        file: Opened with `newline=""`.
        delimiter: The character between cells.
        choices: Columns named here must be in the header.

    Raises:
        ConfigurationError: Rows of another width than the header, two columns of one name, an open quote.
    """
    lines = csv.reader(file, delimiter=delimiter, strict=True)
    begin, places, wrong = 0, array("Q"), array("Q")
    header: list[str] = []
    rows: list[list[str]] = []
    columns: list[list[str]] = []
    with _cells_of_any_length():
        while True:
            try:
                cells = next(lines, None)
            except csv.Error as error:
                raise refusal(
                    path, f'line {begin + 1}: not separated by {_called(delimiter)} with quotes by ": {error}'
                ) from None
            if cells is None:
                break
            if not header:
                header = _header(path, cells, begin + 1)
                columns = [[] for _ in header]
                _check_named(path, header, choices)
            elif cells and len(cells) != len(header):
                wrong.append(begin + 1)
            elif cells:
                places.append(begin + 1)
                rows.append(cells)
                if len(rows) == 4096:
                    _move(rows, columns)
            begin = lines.line_num
    _move(rows, columns)
    if wrong:
        raise refusal(
            path,
            f"{len(wrong):,} of {len(wrong) + len(places):,} rows do not have the header's {len(header)} "
            "cells "
            f"({listed(header, 80)}): {numbered('line', wrong)}; "
            f"{_propose(header, delimiter) or 'quote a cell that holds the delimiter'}",
        )
    if len(header) == 1 and (proposal := _propose(header, delimiter)):
        raise refusal(path, f"line 1 is one cell, {cut(header[0])}: {proposal}")
    for name, values in zip(header, columns, strict=True):
        _check_quotes(path, name, values, places)
    return Table(str(path), dict(zip(header, columns, strict=True)), places)


def _move(rows: list[list[str]], columns: list[list[str]]) -> None:
    """Move rows to the columns; equal cells, such as labels, are stored once."""
    for target, cells in zip(columns, zip(*rows, strict=True), strict=False):
        shared = {cell: cell for cell in cells}
        target += map(shared.__getitem__, cells) if 2 * len(shared) < len(cells) else cells
    rows.clear()


def _check_named(path: Path, header: list[str], choices: Choices) -> None:
    """Refuse a header without the named columns, before a long file is read."""
    empty = Table(str(path), {name: [] for name in header}, [])
    if len(header) > 1:
        empty.require(choices.text_columns, "--text-columns")
        empty.require([choices.label_column] if choices.label_column else [], "--label-column")


def _called(delimiter: str) -> str:
    return "tabs" if delimiter == "\t" else repr(delimiter)


def _header(path: Path, cells: list[str], line: int) -> list[str]:
    if not cells:
        return []
    named = [cell.strip() for cell in cells]
    prefix = UNNAMED if not any(name.startswith(UNNAMED) for name in named) else f"{UNNAMED}here "
    names = [name or f"{prefix}{number}" for number, name in enumerate(named)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise refusal(
            path,
            f"line {line}: {len(names)} columns, several named {listed(map(cut, twice), 80)}: give each "
            "its own name",
        )
    return names


def _propose(header: list[str], delimiter: str) -> str:
    guesses = [
        answer
        for other, answer in OTHERS.items()
        if other != delimiter and any(other in name for name in header)
    ]
    return f"--delimiter names another one, such as {guesses[0]}" if guesses else ""


def _check_quotes(path: Path, name: str, values: list[str], places: "array[int]") -> None:
    """Refuse cells quoted by ' or after a blank: their quotes would stay in the text."""
    late = [
        place
        for value, place in zip(values, places, strict=True)
        if value[:1] == " " and (text := value.strip())[:1] == text[-1:] == '"' and len(text) > 1
    ]
    if late and len(late) == sum(map(bool, values)):  # a single text may have it
        raise refusal(
            path,
            f"every cell of {cut(name)} has a blank before the quote that begins it: "
            f"{numbered('line', late)}; write no blank after the delimiter",
        )
    guesses = [
        place
        for value, place in zip(values, places, strict=True)
        if len(value) > 3
        and value[0] == value[-1] == "'"
        and "''" in value[1:-1]
        and "'" not in value[1:-1].replace("''", "")
    ]
    if guesses:
        raise refusal(
            path,
            f"{len(guesses):,} cells of {cut(name)} look quoted by ' instead of \": "
            f'{numbered("line", guesses)}; write the file with quotes by "',
        )
