"""Lists of labels: real ones, and those that a program has written into one cell."""

import json
import re
from ast import literal_eval

from finetune_common.data.values import NUMBER, finite, is_list, is_tuple, spelled

__all__ = ["are_vectors", "as_list", "in_brackets"]

BRACKETS = {"[": "]", "(": ")", "{": "}"}
"""As lists, tuples and sets are written; databases write lists in braces."""

QUOTED = r"""[uU]?(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
WORD = r"""[^\s,'"()\[\]{}]+"""
TOKEN = re.compile(rf"\s*((?:{QUOTED}|{WORD})(?=[\s,]|\Z)|,)", re.DOTALL)
"""A quoted text, a word, or a comma; texts without a comma or blank between them are no list."""

LITERALS = {"true": True, "false": False, "none": None, "null": None}
"""Words that are values in JSON, Python or SQL."""


def in_brackets(value: object) -> bool:
    """Say whether a value is a text whose first bracket is closed by its last character.

    Examples:
        >>> [in_brackets(text) for text in ("[sic]", "{a,b}", "[a] and [b]", "[sic] late", "[a)")]
        [True, True, False, False, False]
    """
    text = value.strip() if isinstance(value, str) else ""
    opening, closing = text[:1], BRACKETS.get(text[:1], "")
    if not closing or not text.endswith(closing):
        return False
    depth = 0
    for sign in text[:-1]:
        depth += (sign == opening) - (sign == closing)
        if not depth:
            return False
    return depth == 1


def as_list(value: object, *, words: bool = False) -> list[object] | None:
    """Return a value that is a list, or whose text is one as JSON, Python, NumPy or SQL write it, else None.

    Args:
        value: A cell.
        words: Whether words without quotes are elements, too; `[sic]` may be a list or a label.

    Examples:
        >>> as_list("['x', 'y']"), as_list("['x' 'y']"), as_list("[0 1]"), as_list("{'x'}"), as_list("('x',)")
        (['x', 'y'], ['x', 'y'], ['0', '1'], ['x'], ['x'])
        >>> as_list("{late delivery,log-in}"), as_list("{late delivery,log-in}", words=True)
        (None, ['late delivery', 'log-in'])
    """
    if is_list(value) or is_tuple(value):
        return list(value)
    text = value.strip() if isinstance(value, str) else ""
    if BRACKETS.get(text[:1], " ") != text[-1:] or len(text) > 100_000:
        return None
    try:
        decoded = json.loads(text) if text[0] == "[" else None
    except (ValueError, RecursionError):
        decoded = None
    if is_list(decoded):
        return None if any(isinstance(part, list | dict) for part in decoded) else decoded
    tokens = _tokens(text[1:-1].strip())
    if not words and any(map(_is_word, tokens or ())):
        return None
    if tokens is None or (text[0] == "(" and tokens and "," not in tokens):  # `(a)` is no tuple
        return None
    try:
        return _elements(tokens)
    except (ValueError, SyntaxError):  # a quoted text with an invalid escape
        return None


def _tokens(inside: str) -> list[str] | None:
    tokens: list[str] = []
    place = 0
    while place < len(inside):
        found = TOKEN.match(inside, place)
        if found is None:
            return None
        tokens.append(found[1])
        place = found.end()
    return tokens


def _elements(tokens: list[str]) -> list[object] | None:
    """Return elements separated by commas, or without any comma by blanks; only words may hold blanks."""
    if "," not in tokens:
        groups = [tokens] if any(map(_is_word, tokens)) else [[token] for token in tokens]
    else:
        groups: list[list[str]] = [[]]
        for token in tokens:
            if token == ",":
                groups.append([])
            else:
                groups[-1].append(token)
        groups = groups if groups[-1] else groups[:-1]  # Python writes `('x',)`
    whole = all(group and (len(group) == 1 or not any(map(_is_quoted, group))) for group in groups)
    return [_element(group) for group in groups] if whole else None


def _is_quoted(token: str) -> bool:
    return token[-1] in "'\""


def _is_word(token: str) -> bool:
    return (
        token.lower() not in (",", "nan", *LITERALS) and not _is_quoted(token) and not NUMBER.fullmatch(token)
    )


def _element(group: list[str]) -> object:
    text = " ".join(group)
    if _is_quoted(text):
        return literal_eval(text) if "\\" in text else text.lstrip("uU")[1:-1]
    return LITERALS.get(text.lower(), text)


def are_vectors(lists: list[list[object]]) -> bool:
    """Say whether lists are vectors, one number for each label, rather than the labels of a row.

    They are if they hold truth values or fractions, or if whole numbers are as many in each and repeat, or
    are the same ones in each.

    Examples:
        >>> are_vectors([[1, 0, 1], [0, 1, 0]]), are_vectors([[1, 0], [0, 1]]), are_vectors([[True], [False]])
        (True, True, True)
        >>> are_vectors([[3, 1], [2]]), are_vectors([["x", "x"], ["y", "x"]])
        (False, False)
    """
    values = {spelled(part) for row in lists for part in row}
    if any(isinstance(part, bool) for row in lists for part in row):
        return True
    numbers = [finite(value) for value in values]
    if None in numbers:
        return False
    if any(number is not None and not number.is_integer() for number in numbers):
        return True
    rows = [[spelled(part) for part in row] for row in lists]
    if len({len(row) for row in rows}) > 1 or len(rows[0]) < 2:
        return False
    return any(len(set(row)) < len(row) for row in rows) or len({frozenset(row) for row in rows}) == 1
