"""Find the kind of a task from its labels: classes, several labels per row, or a number."""

import re
from collections import Counter
from dataclasses import dataclass

from finetune_common.data.lists import are_vectors, as_list, in_brackets
from finetune_common.data.messages import counted, cut, listed, refusal
from finetune_common.data.tables import Table
from finetune_common.data.values import DECIMAL_COMMA, NUMBER, WHOLE, finite, is_missing, spelled, unit

__all__ = ["Kind", "find_kind", "quoted_column"]

SEPARATORS = "|;,"
"""What separates several labels in one cell."""

FEW = 20
"""With more different whole numbers than this, they could be scores as well as classes."""


@dataclass(frozen=True)
class Kind:
    """The kind of a task, the reason, and what to ask the user.

    Attributes:
        name: `classes`, `labels` or `regression`.
        because: Why, as a reader of the file would say it.
        question: The choice to make if it is ambiguous; empty otherwise.
        as_whole: Whether class names are whole numbers written with a point: `1.0` is class 1.
    """

    name: str
    because: str
    question: str = ""
    as_whole: bool = False


def quoted_column(column: str) -> str:
    """Return a column and its name for a message."""
    return f"column {cut(column)}"


def find_kind(table: Table, column: str, given: str | None = None) -> Kind:
    """Find the kind from a training file's labels, none of which is missing.

    Lists are labels, words are classes, numbers with a fraction are scores. Whole numbers are classes if
    there are few, or if they run from 0 or 1 without a gap. If there are more, or they are written with a
    point, as pandas does if one is missing, the user is asked; also if a single word is among them, or if
    some cells are lists, or look like lists.

    Args:
        table: The training file.
        column: The column of the label.
        given: The user's choice.

    Raises:
        ConfigurationError: Lists in some rows only, vectors, numbers with a decimal comma, a sign or a unit.
    """
    values = table.columns[column]
    lists = [row for row, value in enumerate(values) if isinstance(value, list)]
    if odd := [row for row, value in enumerate(values) if isinstance(value, bytes)]:
        _refuse_rows(table, column, odd, "store it as text in UTF-8")
    if given in (None, "labels"):
        _refuse_lists_with_other_than_labels(table, column, words=given == "labels")
    if given is not None:
        if lists and given != "labels":
            raise refusal(
                table.name,
                f"--kind {given}: {quoted_column(column)} holds lists: {table.where(lists)}; --kind labels "
                "takes them",
            )
        whole = given == "classes" and not lists and _are_whole(Counter(map(spelled, values)))
        return Kind(given, "as --kind says", as_whole=whole)
    if lists and len(lists) < len(values):
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds lists in {len(lists):,} of {len(values):,} rows: "
            f"{table.where(lists)}; "
            "--kind labels takes the others as lists of one label",
        )
    if column in table.classes:
        return Kind("labels" if lists else "classes", "the file names its classes")
    if kind := _lists(table, column, values if lists else list(dict.fromkeys(values))):
        return kind
    _refuse_booleans_among_other_values(table, column)
    counts = Counter(map(spelled, values))
    words = [text for text in counts if not NUMBER.fullmatch(text.strip())]
    if words and len(words) < len(counts):
        _refuse_words_among_scores(table, column, counts, words)
    if words:
        return _words(table, column, counts, words)
    return _numbers(table, column, counts)


def _lists(table: Table, column: str, cells: list[object]) -> Kind | None:
    """Return the kind of a column of lists, or with some that look like lists, None for other columns."""
    lists = [as_list(cell) for cell in cells]
    read = [parts for parts in lists if parts is not None]
    if len(read) == len(cells):
        if are_vectors(read):
            raise refusal(
                table.name,
                f"{quoted_column(column)} holds vectors, such as {cut(cells[0])}: write the labels of each "
                'row, as ["a", "b"], or --kind labels takes the numbers as names of labels',
            )
        return Kind("labels", "each label is a list")
    if not read and not all(map(in_brackets, cells)):
        return None
    example = next(cell for cell, parts in zip(cells, lists, strict=True) if not read or parts is not None)
    return Kind(
        "classes",
        "labels are words",
        f"{table.name}: {quoted_column(column)} has cells in brackets, such as {cut(example)}, taken as "
        "classes: --kind labels takes them as lists of labels, --kind classes as words",
    )


def _refuse_words_among_scores(table: Table, column: str, counts: Counter[str], words: list[str]) -> None:
    """Refuse words among numbers with a fraction, which are scores; words among whole numbers are classes."""
    numbers = [finite(text) for text in counts]
    if any(number is not None and not number.is_integer() for number in numbers):
        rows = [row for row, value in enumerate(table.columns[column]) if spelled(value) in words]
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds scores, but {cut(words[0])} in {counted(rows)}: "
            f"{table.where(rows)}; empty such cells (--drop-unlabelled), or --kind classes takes all as "
            "words",
        )


def _refuse_lists_with_other_than_labels(table: Table, column: str, *, words: bool) -> None:
    """Refuse lists with an element that is no label; with `words` also what looks like a list and is none."""
    wrong: list[int] = []
    for row, value in enumerate(table.columns[column]):
        elements = as_list(value, words=words)
        if elements is None:
            odd = words and in_brackets(value)
        else:
            odd = any(isinstance(part, list | dict) or is_missing(part) for part in elements)
        if odd:
            wrong.append(row)
    if wrong:
        _refuse_rows(table, column, wrong, 'a list of labels holds words or numbers alone, as ["a", "b"]')


def _refuse_rows(table: Table, column: str, wrong: list[int], remedy: str) -> None:
    value = cut(table.columns[column][wrong[0]])
    complaint = f"{quoted_column(column)} is {value} in {counted(wrong)}: {table.where(wrong)}; {remedy}"
    raise refusal(table.name, complaint)


def _refuse_booleans_among_other_values(table: Table, column: str) -> None:
    """Refuse truth values beside other values: only the user knows whether true is 1."""
    values = table.columns[column]
    truths = [row for row, value in enumerate(values) if isinstance(value, bool)]
    if truths and len(truths) < len(values):
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds truth values in {len(truths):,} of {len(values):,} rows: "
            f"{table.where(truths)}; write all labels alike",
        )


def _several_in_one_cell(counts: Counter[str]) -> str:
    """Return a cell that joins two labels of other cells, such as `a|b` or `a and b` beside `a` and `b`."""
    for text in counts:
        gaps = [gap.span() for gap in re.finditer(r"[\W_]+", text)]
        first = next((start for start, _ in gaps if text[:start] in counts), len(text))
        last = next((end for _, end in reversed(gaps) if text[end:] in counts), 0)
        if first < last and text[:first] != text[last:]:
            return text
    return ""


def _words(table: Table, column: str, counts: Counter[str], words: list[str]) -> Kind:
    plain = [text.strip() for text in counts]
    if all(map(DECIMAL_COMMA.fullmatch, plain)):
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds numbers with a comma, such as {cut(words[0])}: write a point, or "
            "--kind classes takes them as words",
        )
    units = set(map(unit, plain))
    if None not in units and len(units - {""}) < 2:
        kind = "a unit" if any(sign.isalnum() for sign in "".join(map(str, units))) else "a sign"
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds numbers with {kind}, such as {cut(words[0])}: write plain "
            "numbers, or --kind classes takes them as words",
        )
    if len(words) == 1 and len(counts) > 1:
        return Kind(
            "classes",
            "labels are words",
            f"{table.name}: {quoted_column(column)} has {cut(words[0])} beside whole numbers alone, taken as "
            "a class: --kind classes confirms it; if it means that a label is missing, empty such cells "
            "(--drop-unlabelled)",
        )
    if len(counts) > FEW and 2 * len(counts) > len(table):
        return Kind(
            "classes",
            "labels are words",
            f"{table.name}: {quoted_column(column)} has {len(counts):,} different values in {len(table):,} "
            "rows, taken as "
            "classes: --label-column names another column, --kind classes confirms this one",
        )
    if joined := _several_in_one_cell(counts):
        return Kind(
            "classes",
            "labels are words",
            f"{table.name}: {quoted_column(column)} has {cut(joined)} beside the labels that it joins, taken "
            f"as one class: --kind labels takes several labels a row, with {' or '.join(SEPARATORS)} between "
            "them, --kind classes confirms one class",
        )
    return Kind("classes", "labels are words")


def _are_whole(counts: Counter[str]) -> bool:
    numbers = [finite(text) for text in counts]
    return all(number is not None and number.is_integer() for number in numbers) and not _are_written_whole(
        counts
    )


def _are_written_whole(counts: Counter[str]) -> bool:
    return all(WHOLE.fullmatch(text.strip()) for text in counts)


def _numbers(table: Table, column: str, counts: Counter[str]) -> Kind:
    if any(number is not None and not number.is_integer() for number in map(finite, counts)):
        return Kind("regression", "labels are numbers with a fraction")
    what = f"{len(counts):,} different whole numbers"
    by_size: list[str] = sorted(counts, key=lambda text: (len(text), text))
    examples = listed(by_size, 40)
    choice = "--kind classes or --kind regression decides"
    if not _are_written_whole(counts):
        name = "classes" if len(counts) <= FEW else "regression"
        question = (
            f"{table.name}: {quoted_column(column)} holds {examples}, whole numbers written with a point or "
            "an exponent, "
            f"which could be classes or scores: taken as {name}; {choice}"
        )
        return Kind(name, f"{what}, written with a point", question, as_whole=name == "classes")
    numbers = sorted(int(text) for text in counts if len(text) < 400)
    steady = (
        len(numbers) == len(counts) and numbers[0] in (0, 1) and numbers[-1] - numbers[0] + 1 == len(numbers)
    )
    if len(counts) <= FEW or (steady and 2 * len(counts) <= len(table)):
        return Kind("classes", f"{what}; --kind regression takes them as scores")
    question = (
        f"{table.name}: {quoted_column(column)} holds {what} ({examples}) in {len(table):,} rows, which "
        "could be classes or "
        f"scores: taken as classes; {choice}"
    )
    return Kind("classes", what, question)


def parts(value: object, separator: str = "") -> list[str]:
    """Return the labels of one row from a list, a list written as text, or text with separators.

    Examples:
        >>> parts(["x", 1]), parts("{x}"), parts("x | y", "|"), parts("x, y")
        (['x', '1'], ['x'], ['x', 'y'], ['x, y'])
    """
    pieces = as_list(value, words=True)
    if pieces is None:
        text = spelled(value)
        pieces = text.split(separator) if separator else [text]
    return [text for text in dict.fromkeys(spelled(piece).strip() for piece in pieces) if text]
