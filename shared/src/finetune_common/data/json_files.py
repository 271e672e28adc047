"""Read json and jsonl files: a list of rows, or one row per line."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

from finetune_common.data.messages import counted, cut, listed, numbered, refusal
from finetune_common.data.tables import Table, flatten
from finetune_common.data.values import is_record

__all__ = ["read_json", "read_json_lines"]

BLANKS = " \t\r\n"


def read_json_lines(path: Path, file: TextIOWrapper) -> Table:
    """Return the columns of a file with one row per line; blank lines are skipped.

    Raises:
        ConfigurationError: A line that is not JSON, or holds no `{column: value}`.
    """
    return _table(path, _lines(path, file))


def read_json(path: Path, file: TextIOWrapper) -> Table:
    """Return the columns of a file that holds a list of rows, or one row per line.

    Raises:
        ConfigurationError: Not JSON, or not rows.
    """
    text = file.read()
    if not text.lstrip(BLANKS).startswith("["):
        return _table(path, _of_rows(path, _lines(path, text.split("\n"))))
    return _table(path, _elements(path, text))


def _of_rows(path: Path, rows: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Yield rows one by one; refuse a single object that holds columns instead of a row."""
    number, first = 0, None
    for number, (line, row) in enumerate(rows, 1):
        if number == 1:
            first = row
        yield line, row
    if number == 1 and is_record(first) and all(isinstance(value, dict | list) for value in first.values()):
        raise refusal(
            path,
            f"one object with {listed(map(cut, first), 80)}, which are no row: give a list of rows, as "
            "pandas writes with orient='records'",
        )


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the members of an object; refuse a name that occurs twice."""
    members = dict(pairs)
    if len(members) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {cut(twice)} occurs twice in one object")
    return members


DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _decode(path: Path, text: str, start: int, line: int) -> tuple[object, int]:
    try:
        return DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise refusal(
            path, f"line {line + error.lineno - 1 - text.count(chr(10), 0, start)}: not JSON: {error.msg}"
        ) from None
    except ValueError as error:
        raise refusal(path, f"line {line}: not JSON: {str(error)[:120]}") from None
    except RecursionError:
        raise refusal(path, f"line {line}: nested too deeply: give rows of plain values") from None


def _lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(lines, 1):
        text = line.strip(BLANKS)
        if text:
            value, end = _decode(path, text, 0, number)
            if end < len(text):
                raise refusal(path, f"line {number}: not JSON: more follows after the first value")
            yield number, value


def _elements(path: Path, text: str) -> Iterator[tuple[int, object]]:
    """Yield the elements of a list with their lines, which parsing the whole list would lose."""
    offset, line, counted = _skip(text, 0) + 1, 1, 0

    def line_at(position: int) -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, position), position
        return line

    offset = _skip(text, offset)
    closed = offset < len(text) and text[offset] == "]"
    while not closed:
        number = line_at(offset)
        value, offset = _decode(path, text, offset, number)
        yield number, value
        offset = _skip(text, offset)
        sign = text[offset : offset + 1]
        if sign not in (",", "]"):
            raise refusal(path, f"line {line_at(offset)}: not JSON: expected ',' or ']' after a row")
        closed = sign == "]"
        offset = _skip(text, offset + 1)
    offset = _skip(text, offset + 1 if text[offset : offset + 1] == "]" else offset)
    if offset < len(text):
        raise refusal(path, f"line {line_at(offset)}: not JSON: more follows after the list")


def _skip(text: str, offset: int) -> int:
    while offset < len(text) and text[offset] in BLANKS:
        offset += 1
    return offset


def _table(path: Path, rows: Iterable[tuple[int, object]]) -> Table:
    columns: dict[str, list[object]] = {}
    places, wrong = array("Q"), array("Q")
    for line, row in rows:
        if not is_record(row):
            wrong.append(line)
            continue
        try:
            flat = flatten(row)
        except KeyError as error:
            raise refusal(path, f"line {line}: the field {cut(error.args[0])} occurs twice") from None
        for name in flat:
            if name not in columns:
                columns[name] = [None] * len(places)
        for name, values in columns.items():
            values.append(flat.get(name))
        places.append(line)
    if wrong:
        raise refusal(
            path,
            f"{counted(wrong)} without {{column: value}}: {numbered('line', wrong)}; give one object a row",
        )
    return Table(str(path), columns, places)
