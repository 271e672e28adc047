"""A file's columns, and the place of each row in the file."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune_common.aliases import Rows
from finetune_common.data.messages import cut, numbered, refusal
from finetune_common.data.values import is_record
from finetune_common.errors import did_you_mean

__all__ = ["Table", "flatten"]


@dataclass
class Table:
    """The columns of one file.

    Attributes:
        name: The file, as it was given.
        columns: Name → values: text from csv and tsv, typed values from the others.
        places: For each row, the line on which it begins, as an editor counts, or its number.
        unit: What `places` counts: `line`, or `row` in files without lines.
        classes: Column → class names, if the file itself names its indices.
    """

    name: str
    columns: Rows
    places: Sequence[int]
    unit: str = "line"
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def __len__(self) -> int:
        return len(self.places)

    def require(self, names: Sequence[str], option: str) -> tuple[str, ...]:
        """Return these names, all of existing columns.

        Raises:
            ConfigurationError: Names the first that is not, and the ones that are.
        """
        for name in names:
            if name not in self.columns:
                known = [column[:60] for column in self.columns][:12]
                raise refusal(self.name, f"{option}: no column {cut(name)}: {did_you_mean(name, known)}")
        return tuple(names)

    def where(self, rows: Sequence[int]) -> str:
        """Return the places of these rows: `lines 3, 9, 14, …`."""
        return numbered(self.unit, [self.places[row] for row in rows])

    def without(self, rows: Sequence[int]) -> "Table":
        """Return the table with these rows left out."""
        dropped = set(rows)
        return self.select([row for row in range(len(self)) if row not in dropped])

    def select(self, rows: Sequence[int]) -> "Table":
        """Return the table of these rows."""
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        return Table(self.name, columns, [self.places[row] for row in rows], self.unit, self.classes)


def flatten(row: dict[str, object]) -> dict[str, object]:
    """Return a row with nested fields named by their path: `{"a": {"b": 1}}` is `{"a.b": 1}`.

    Raises:
        KeyError: Two fields have the same path; names it.

    Examples:
        >>> flatten({"id": 7, "ticket": {"body": "late", "tags": ["x"]}})
        {'id': 7, 'ticket.body': 'late', 'ticket.tags': ['x']}
    """
    if not any(isinstance(value, dict) for value in row.values()):
        return row
    flat: dict[str, object] = {}
    pending = list(reversed(row.items()))
    while pending:
        name, value = pending.pop()
        if is_record(value):
            pending += [(f"{name}.{key}", inner) for key, inner in reversed(value.items())]
        elif name in flat:
            raise KeyError(name)
        else:
            flat[name] = value
    return flat
