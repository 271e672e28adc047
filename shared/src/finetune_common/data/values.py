"""The meaning of single values: missing, a number, text, a list of labels."""

import ast
import json
import re
from math import isfinite, isnan
from typing import TypeGuard

__all__ = [
    "NUMBER",
    "as_list",
    "finite",
    "is_list",
    "is_missing",
    "is_record",
    "is_tuple",
    "spelled",
    "well_formed",
]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
"""A number as files write it: no blanks, no separators of thousands, no words."""

WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
"""A whole number without point or exponent."""

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
"""A number with a comma where a point is expected."""

WITH_SIGN = re.compile(r"[+-]?[$€£¥]?\s?\d[\d.,]*\s?[%‰$€£¥]?", re.ASCII)
"""A number with a currency or percent sign: neither a plain number nor a word."""

MISSING = ("nan", "NaN", "NAN", "<NA>", "NaT")
"""pandas' spellings of a missing value. `None`, `NA` and `null` can be real words, too."""


def is_list(value: object) -> TypeGuard[list[object]]:
    """Say whether a value is a list."""
    return isinstance(value, list)


def is_record(value: object) -> TypeGuard[dict[str, object]]:
    """Say whether a value has named fields, such as a JSON object."""
    return isinstance(value, dict)


def is_tuple(value: object) -> TypeGuard[tuple[object, ...]]:
    """Say whether a value is a tuple."""
    return isinstance(value, tuple)


def is_missing(value: object) -> bool:
    """Say whether a value is missing: null, blank, or NaN.

    Examples:
        >>> [is_missing(value) for value in (None, " ", float("nan"), "<NA>", 0, "none", [])]
        [True, True, True, True, False, False, False]
    """
    if isinstance(value, str):
        return not value or value.isspace() or value in MISSING
    return value is None or (isinstance(value, float) and isnan(value))


def spelled(value: object) -> str:
    """Return a label as text, truth values in JSON's words.

    Examples:
        >>> spelled(True), spelled(2.0), spelled(" late ")
        ('true', '2.0', ' late ')
    """
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def finite(text: str) -> float | None:
    """Return a text's number if it is finite and fits 32 bits, else None.

    Examples:
        >>> finite("1e-3"), finite("1_000"), finite("1e39"), finite("²")
        (0.001, None, None, None)
    """
    text = text.strip()
    if len(text) > 400 or not NUMBER.fullmatch(text):
        return None
    number = float(text)
    return number if isfinite(number) and abs(number) < 3.4e38 else None


def as_list(value: object) -> list[object] | None:
    """Return a value that is a list, or whose text is a list in JSON or Python, else None.

    Examples:
        >>> as_list("['x', 'y']"), as_list('["x"]'), as_list("[sic] late"), as_list([1])
        (['x', 'y'], ['x'], None, [1])
    """
    if is_list(value) or is_tuple(value):
        return list(value)
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("[") and text.endswith("]")) or len(text) > 100_000:
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            converted = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if is_list(converted) and not any(isinstance(part, list | dict) for part in converted):
            return converted
    return None


def well_formed(text: str) -> bool:
    """Say whether a text can be encoded as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
