"""Find the kind of a task from its labels: classes, several labels per row, or a number."""

from collections import Counter
from dataclasses import dataclass

from finetune_common.data.messages import counted, cut, listed, refusal
from finetune_common.data.tables import Table
from finetune_common.data.values import (
    DECIMAL_COMMA,
    NUMBER,
    WHOLE,
    WITH_SIGN,
    as_list,
    finite,
    is_list,
    is_missing,
    spelled,
)

__all__ = ["Kind", "find_kind", "quoted_column"]

SEPARATORS = "|;,"
"""Possible separators between several labels in one cell."""

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
    point, as pandas does if one is missing, the user is asked.

    Args:
        table: The training file.
        column: The column of the label.
        given: The user's choice.

    Raises:
        ConfigurationError: Lists in some rows only, or numbers with a decimal comma.
    """
    values = table.columns[column]
    lists = [row for row, value in enumerate(values) if isinstance(value, list)]
    _refuse_lists_with_other_than_labels(table, column)
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
    if lists or all(as_list(value) is not None for value in dict.fromkeys(values)):
        return Kind("labels", "each label is a list")
    _refuse_booleans_among_other_values(table, column)
    counts = Counter(map(spelled, values))
    words = [text for text in counts if not NUMBER.fullmatch(text.strip())]
    if words and len(words) < len(counts):
        _refuse_words_among_scores(table, column, counts, words)
    if words:
        return _words(table, column, counts)
    return _numbers(table, column, counts)


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


def _refuse_lists_with_other_than_labels(table: Table, column: str) -> None:
    """Refuse lists of labels, also as text, with an element that is no label."""
    wrong = [
        row
        for row, value in enumerate(table.columns[column])
        if is_list(value) or (isinstance(value, str) and value.lstrip().startswith("["))
        if any(isinstance(part, list | dict) or is_missing(part) for part in as_list(value) or [])
    ]
    if wrong:
        raise refusal(
            table.name,
            f"{quoted_column(column)} is {cut(table.columns[column][wrong[0]])} in {counted(wrong)}: "
            f"{table.where(wrong)}; a list of labels holds words or numbers alone",
        )


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
    """Return a cell that joins labels of other cells, such as `a|b` beside `a` and `b`."""
    for text in counts:
        for sign in SEPARATORS:
            joined = [part.strip() for part in text.split(sign)]
            if len(joined) > 1 and all(part in counts for part in joined):
                return text
    return ""


def _words(table: Table, column: str, counts: Counter[str]) -> Kind:
    if all(DECIMAL_COMMA.fullmatch(text.strip()) for text in counts):
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds numbers with a comma, such as {cut(next(iter(counts)))}: write a "
            "point, "
            "or --kind classes takes them as words",
        )
    if all(WITH_SIGN.fullmatch(text.strip()) for text in counts):
        raise refusal(
            table.name,
            f"{quoted_column(column)} holds numbers with a sign, such as {cut(next(iter(counts)))}: write "
            "plain numbers, or --kind classes takes them as words",
        )
    if joined := _several_in_one_cell(counts):
        return Kind(
            "classes",
            "labels are words",
            f"{table.name}: {quoted_column(column)} has {cut(joined)} beside the labels that it joins, taken "
            "as one class: --kind labels takes several labels a row, --kind classes confirms one class",
        )
    if len(counts) > FEW and 2 * len(counts) > len(table):
        return Kind(
            "classes",
            "labels are words",
            f"{table.name}: {quoted_column(column)} has {len(counts):,} different values in {len(table):,} "
            "rows, taken as "
            "classes: --label-column names another column, --kind classes confirms this one",
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
        >>> parts(["x", 1]), parts("['x']"), parts("x | y", "|"), parts("x, y")
        (['x', '1'], ['x'], ['x', 'y'], ['x, y'])
    """
    pieces = as_list(value)
    if pieces is None:
        text = spelled(value)
        pieces = text.split(separator) if separator else [text]
    return [text for text in dict.fromkeys(spelled(piece).strip() for piece in pieces) if text]
