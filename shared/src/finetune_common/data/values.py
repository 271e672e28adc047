"""The meaning of single values: missing, a number, text, a list of labels."""

import re
from math import isfinite, isnan
from typing import TypeGuard
from unicodedata import category, decimal, normalize

__all__ = [
    "NUMBER",
    "finite",
    "is_list",
    "is_missing",
    "is_record",
    "is_tuple",
    "spelled",
    "unit",
    "well_formed",
]

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
"""A number as files write it: no blanks, no separators of thousands, no words."""

WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
"""A whole number without point or exponent."""

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)
"""A number with a comma where a point is expected."""

AMOUNT = re.compile(r"([+-]?¤?[+-]?)\s*\d[\d.,' ]*(.*)", re.ASCII | re.DOTALL)
"""A number with what stands around it; ¤ is any currency."""

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


def well_formed(text: str) -> bool:
    """Say whether a text can be encoded as UTF-8; half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def unit(text: str) -> str | None:
    """Return what stands beside the number that a text begins with, in any digits; None without one.

    Examples:
        >>> unit("€ 5"), unit("-7.50$"), unit("3/5"), unit("٥ km"), unit("−1"), unit("1 000"), unit("class 1")
        ('¤', '¤', '/5', 'km', '', '', None)
    """
    found = AMOUNT.fullmatch("".join(map(_plain, text)).strip())
    return "".join((found[1].strip("+-") + found[2]).split()) if found else None


def _plain(sign: str) -> str:
    """Return a character as ASCII writes it: digits of any alphabet, any minus; ¤ is any currency."""
    kind = category(sign)
    if kind == "Nd":
        return str(decimal(sign))
    if kind in ("Sc", "Pd") or sign == "\N{MINUS SIGN}":
        return "¤" if kind == "Sc" else "-"
    return sign if kind == "No" else {"٫": ".", "٬": ","}.get(sign) or normalize("NFKC", sign)
