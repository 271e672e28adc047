"""Messages about data: one line of readable length, for any data."""

from collections.abc import Iterable, Sequence

from finetune_common.errors import ConfigurationError

__all__ = ["LONGEST", "counted", "cut", "listed", "numbered", "refusal"]

LONGEST = 400
"""Most characters of a message."""


def cut(value: object, width: int = 40) -> str:
    """Return a value as Python writes it, without the middle if it is long.

    Examples:
        >>> cut("late"), cut("x" * 5000, 20)
        ("'late'", "'xxxxxxx…xxxxxxxxx'")
    """
    text = repr(
        value[: 2 * width] + value[-2 * width :]
        if isinstance(value, str) and len(value) > 4 * width
        else value
    )
    text = text.encode(errors="replace").decode()  # a lone surrogate cannot be printed
    half = (width - 1) // 2
    return text if len(text) <= width else f"{text[: half - 1]}…{text[-half - 1 :]}"


def listed(names: Iterable[object], width: int = 120) -> str:
    """Return as many names as fit, separated by commas, and how many more there are.

    Examples:
        >>> listed(["a", "b"]), listed(range(100_000), width=20)
        ('a, b', '0, 1, 2, 3, 4, 5, 6 and 99,993 more')
    """
    names = list(names)
    shortened: list[str] = []
    for name in names:
        text = str(name).encode(errors="replace").decode()
        text = text if len(text) <= width // 2 else f"{text[: width // 2 - 1]}…"
        if shortened and len(", ".join([*shortened, text])) > width:
            break
        shortened.append(text)
    rest = len(names) - len(shortened)
    return ", ".join(shortened) + (f" and {rest:,} more" if rest else "")


def refusal(place: object, message: str) -> ConfigurationError:
    """Return the error to raise: the place and the fault, in at most `LONGEST` characters.

    A long place loses its beginning, a long message its middle, since the remedy is at the end.

    Examples:
        >>> refusal("data/train.csv", "no rows")
        ConfigurationError('data/train.csv: no rows')
    """
    where = " ".join(str(place).encode(errors="replace").decode().split())
    where = where if len(where) <= 120 else f"…{where[-119:]}"
    text = " ".join(message.encode(errors="replace").decode().split())
    room = LONGEST - len(where) - 2
    if len(text) > room:
        half = (room - 3) // 2
        text = f"{text[:half]} … {text[-half:]}"
    return ConfigurationError(f"{where}: {text}")


def counted(rows: Sequence[int]) -> str:
    """Return the number of rows, in words.

    Examples:
        >>> counted([4]), counted(range(1200))
        ('1 row', '1,200 rows')
    """
    return "1 row" if len(rows) == 1 else f"{len(rows):,} rows"


def numbered(unit: str, numbers: Sequence[int], most: int = 6) -> str:
    """Return places in a file: `lines 3, 9, 14, …`.

    Examples:
        >>> numbered("line", [3]), numbered("line", list(range(2, 40)))
        ('line 3', 'lines 2, 3, 4, 5, 6, 7, …')
    """
    listing = ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")
    return f"{unit}{'s' if len(numbers) > 1 else ''} {listing}"
