"""Class names and their indices, or scores; rows with invalid labels are reported together."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from unicodedata import category, normalize

from finetune_common.data.choices import Choices
from finetune_common.data.kinds import SEPARATORS, Kind, find_kind, parts, quoted_column
from finetune_common.data.messages import counted, cut, listed, refusal
from finetune_common.data.tables import Table
from finetune_common.data.values import WHOLE, finite, is_list, is_missing, spelled, well_formed
from finetune_common.tasks import Task

__all__ = ["Labels", "find_labels", "known_labels", "name_indexed_classes", "unlabelled"]


@dataclass(frozen=True)
class Labels:
    """How labels are read.

    Attributes:
        kind: The kind of the labels, and why.
        names: Class names in the order of their indices; empty for scores.
        meaning: A label's spelling → its index.
        separator: The separator of several labels in one cell.
        interval: Lowest and highest score.
        questions: Ambiguities, and how they are resolved unless an option says otherwise.
    """

    kind: Kind
    names: tuple[str, ...] = ()
    meaning: Mapping[str, int] | None = None
    separator: str = ""
    interval: tuple[float, float] = (-inf, inf)
    questions: tuple[str, ...] = ()

    def encode(self, table: Table, column: str) -> list[float] | list[int] | list[list[int]]:
        """Return class indices, lists of them, or numbers, one for each row of the column.

        Raises:
            ConfigurationError: Counts the rows with invalid labels, and says where they are.
        """
        values = table.columns[column]
        if self.meaning is None:
            low, high = self.interval
            numbers = [finite(spelled(value)) for value in values]
            wrong = [row for row, number in enumerate(numbers) if number is None or not low <= number <= high]
            allowed = "a finite number" if low == -inf else f"a number in [{low:g}, {high:g}]"
            _refuse(table, column, wrong, allowed)
            return [number for number in numbers if number is not None]
        meaning = self.meaning
        if self.kind.name == "labels":
            lists = [[meaning.get(part, -1) for part in parts(value, self.separator)] for value in values]
            wrong = [row for row, indices in enumerate(lists) if -1 in indices]
            _refuse(table, column, wrong, listed(self.names))
            return [sorted(set(indices)) for indices in lists]
        indices = [meaning.get(value if isinstance(value, str) else spelled(value), -1) for value in values]
        _refuse(table, column, [row for row, index in enumerate(indices) if index < 0], listed(self.names))
        return indices


def _refuse(table: Table, column: str, wrong: list[int], allowed: str) -> None:
    if wrong:
        example = cut(table.columns[column][wrong[0]])
        complaint = f"label {example} in {counted(wrong)}: {table.where(wrong)}; allowed is {allowed}"
        raise refusal(table.name, complaint)


def known_labels(task: Task) -> Labels:
    """Return how the labels of a known task are read: by name, or by index in the hub's order."""
    if task.regression:
        return Labels(Kind("regression", f"{task.name} is known"), interval=task.label_range)
    meaning = {str(index): index for index in range(len(task.labels))}
    meaning |= {name: index for index, name in enumerate(task.labels)}
    return Labels(Kind("classes", f"{task.name} is known"), task.labels, meaning)


def name_indexed_classes(table: Table, column: str) -> None:
    """Replace class indices by the file's names for them; -1 is no label.

    Raises:
        ConfigurationError: Indices without a name.
    """
    names = table.classes.get(column)
    if names is None:
        return
    wrong: list[int] = []

    def name(value: object, row: int) -> object:
        if is_list(value):
            return [name(part, row) for part in value]
        if value is None or isinstance(value, str):
            return value
        if value == -1:
            return None
        if not isinstance(value, int | float) or not 0 <= value < len(names):
            wrong.append(row)
            return None
        return names[int(value)]

    table.columns[column] = [name(value, row) for row, value in enumerate(table.columns[column])]
    if wrong:
        raise refusal(
            table.name,
            f"{quoted_column(column)}: classes without a name: {table.where(wrong)}; there are {len(names)} "
            "names",
        )


def unlabelled(table: Table, column: str) -> list[int]:
    """Return the rows without a label."""
    return [row for row, value in enumerate(table.columns[column]) if is_missing(value)]


def find_labels(tables: Mapping[str, Table], column: str, choices: Choices) -> Labels:
    """Find how to read the labels of a user's task from its files.

    Args:
        tables: Split → file, `train` among them; no label is missing.
        column: The column of labels.
        choices: The user's choices.

    Raises:
        ConfigurationError: Fewer than two classes, all scores equal, labels that cannot be encoded.
    """
    train = tables["train"]
    kind = find_kind(train, column, choices.kind)
    questions = [kind.question] if kind.question else []
    if kind.name == "regression":
        labels = Labels(kind, questions=tuple(questions))
        if len(set(labels.encode(train, column))) < 2:
            raise refusal(
                train.name, f"every label is {cut(train.columns[column][0])}: scores have to differ"
            )
        return labels
    separator = _separator(train, column) if kind.name == "labels" else ""
    counts = {split: _count(table, column, kind, separator) for split, table in tables.items()}
    spellings = _spellings(counts)
    asked = [group for group in spellings.values() if len(group) > 1 and not kind.as_whole]
    if asked and choices.label_spelling is None:
        alike = "; ".join(listed(map(cut, sorted(group)), 80) for group in asked[:2])
        questions.append(
            f"{train.name}: labels differ only by case, blanks or zeros: {alike}: taken as different ones; "
            "--label-spelling fold makes each such group one label, --label-spelling exact keeps them apart"
        )
    named = _named(spellings, fold=choices.label_spelling == "fold", whole=kind.as_whole)
    names = _ordered({named[text] for text in counts["train"]}, train.classes.get(column, ()))
    if len(names) < (1 if kind.name == "labels" else 2):
        raise refusal(
            train.name,
            f"every label is {listed(map(cut, names)) or 'empty'}: a task needs two classes, or scores "
            "(--kind regression)",
        )
    index = {name: place for place, name in enumerate(names)}
    meaning = {text: index[name] for text, name in named.items() if name in index}
    if choices.kind is None and (question := _in_one_file_only(tables, counts, named, set(index))):
        questions.append(question)
    return Labels(kind, names, meaning, separator, questions=tuple(questions))


def _count(table: Table, column: str, kind: Kind, separator: str) -> Counter[str]:
    values = table.columns[column]
    if kind.name == "labels":
        counts = Counter(part for value in values for part in parts(value, separator))
    else:
        counts = Counter(map(spelled, values))
    if wrong := [text for text in counts if not well_formed(text)]:
        several = kind.name == "labels"
        rows = [
            row
            for row, value in enumerate(values)
            if wrong[0] in (parts(value, separator) if several else [spelled(value)])
        ]
        raise refusal(
            table.name, f"label {cut(wrong[0])} has an invalid character: {table.where(rows)}; correct it"
        )
    return counts


def _separator(table: Table, column: str) -> str:
    cells = [
        value
        for value in table.columns[column]
        if isinstance(value, str) and not value.strip().startswith("[")
    ]
    signs = [sign for sign in SEPARATORS if any(sign in cell for cell in cells)]
    if len(signs) > 1:
        raise refusal(
            table.name,
            f"{quoted_column(column)} has several signs between labels, {' and '.join(map(repr, signs))}: "
            "use one of them, "
            'or lists, as ["a", "b"]',
        )
    return signs[0] if signs else ""


def _spellings(counts: Mapping[str, Counter[str]]) -> dict[Decimal | str, Counter[str]]:
    """Group labels that differ only in case, blanks or the spelling of a number."""
    groups: dict[Decimal | str, Counter[str]] = {}
    for text, count in sum(counts.values(), Counter[str]()).items():
        plain = text.strip()
        key = (
            Decimal(plain)
            if finite(plain) is not None
            else " ".join(_seen(normalize("NFKC", text)).casefold().split())
        )
        groups.setdefault(key, Counter())[text] += count
    return groups


def _seen(text: str) -> str:
    """Return a text without zero-width characters."""
    return text if text.isascii() else "".join(sign for sign in text if category(sign) != "Cf")


def _named(groups: Mapping[Decimal | str, Counter[str]], *, fold: bool, whole: bool) -> dict[str, str]:
    """Return spelling → class."""
    named: dict[str, str] = {}
    for key, group in groups.items():
        number = whole and isinstance(key, Decimal) and key == key.to_integral_value()
        usual = str(int(key)) if number else max(sorted(group), key=lambda text: group[text]).strip()
        for text in group:
            named[text] = usual if number or fold or len(group) == 1 else text
    return named


def _ordered(names: set[str], of_the_file: tuple[str, ...]) -> tuple[str, ...]:
    """Return class names in the file's order, else numbers by value, else words by alphabet."""
    if of_the_file:
        return tuple(dict.fromkeys(name.strip() for name in of_the_file))
    if all(WHOLE.fullmatch(name) and len(name) < 400 for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    numbers = {name: finite(name) for name in names}
    if None not in numbers.values():
        return tuple(sorted(names, key=lambda name: (numbers[name], name)))
    return tuple(sorted(names))


def _in_one_file_only(
    tables: Mapping[str, Table], counts: Mapping[str, Counter[str]], named: Mapping[str, str], known: set[str]
) -> str:
    """Ask about classes that are trained but never evaluated."""
    if "validation" not in tables:
        return ""
    evaluated = {named[text] for text in counts["validation"]}
    trained = {named[text] for text in counts["train"]}
    if not (absent := sorted(trained - evaluated)) or evaluated - known:
        return ""
    return (
        f"{tables['validation'].name}: no row with label {listed(map(cut, absent))}, which the training "
        "file has: it will not be evaluated; --kind classes (or labels) confirms that"
    )
