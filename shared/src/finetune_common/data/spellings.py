"""Spellings of one label: which are alike, what the label is called, and the order of classes."""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from unicodedata import category, normalize

from finetune_common.data.values import WHOLE, finite

__all__ = ["alike", "grouped", "named_groups", "ordered"]


def grouped(counts: Mapping[str, Counter[str]]) -> dict[Decimal | str, Counter[str]]:
    """Group labels that differ only in case, blanks or the spelling of a number."""
    groups: dict[Decimal | str, Counter[str]] = {}
    for text, count in sum(counts.values(), Counter[str]()).items():
        groups.setdefault(alike(text), Counter())[text] += count
    return groups


def alike(text: str) -> Decimal | str:
    """Return what labels have in common that differ only in case, blanks or the spelling of a number."""
    plain = text.strip()
    if finite(plain) is not None:
        return Decimal(plain)
    return " ".join(_seen(normalize("NFKC", text)).casefold().split())


def _seen(text: str) -> str:
    """Return a text without zero-width characters."""
    return text if text.isascii() else "".join(sign for sign in text if category(sign) != "Cf")


def named_groups(groups: Mapping[Decimal | str, Counter[str]], *, fold: bool, whole: bool) -> dict[str, str]:
    """Return spelling → class."""
    named: dict[str, str] = {}
    for key, group in groups.items():
        number = whole and isinstance(key, Decimal) and key == key.to_integral_value()
        usual = str(int(key)) if number else max(sorted(group), key=lambda text: group[text]).strip()
        for text in group:
            named[text] = usual if number or fold or len(group) == 1 else text
    return named


def ordered(names: set[str], of_the_file: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names in the file's order, else numbers by value, else words by alphabet."""
    if of_the_file:
        return tuple(dict.fromkeys(name.strip() for name in of_the_file))
    if all(WHOLE.fullmatch(name) and len(name) < 400 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    numbers = {name: finite(name) for name in names}
    if None not in numbers.values():
        return tuple(sorted(names, key=lambda name: (numbers[name], name)))
    return tuple(sorted(names))
