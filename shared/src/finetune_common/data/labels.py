"""Class names and their indices, or scores; rows with invalid labels are reported together."""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from math import inf

from finetune_common.data.choices import Choices
from finetune_common.data.kinds import SEPARATORS, Kind, find_kind, parts, quoted_column
from finetune_common.data.lists import as_list
from finetune_common.data.messages import counted, cut, listed, refusal
from finetune_common.data.spellings import alike, grouped, named_groups, ordered
from finetune_common.data.tables import Table
from finetune_common.data.values import finite, is_list, is_missing, spelled, well_formed
from finetune_common.tasks import Task

__all__ = ["Labels", "find_labels", "known_labels", "learned_labels", "name_indexed_classes", "unlabelled"]


@dataclass(frozen=True)
class Labels:
    """How labels are read.

    Attributes:
        kind: The kind of the labels, and why.
        names: Class names in the order of their indices; empty for scores.
        meaning: A label's spelling → its index.
        separator: The separator of several labels in one cell.
        interval: Lowest and highest score.
        allowed: The labels that a message lists; empty for the names.
        questions: Ambiguities, and how they are resolved unless an option says otherwise.
    """

    kind: Kind
    names: tuple[str, ...] = ()
    meaning: Mapping[str, int] | None = None
    separator: str = ""
    interval: tuple[float, float] = (-inf, inf)
    allowed: str = ""
    questions: tuple[str, ...] = ()

    def encode(self, table: Table, column: str) -> list[float] | list[int] | list[list[int]]:
        """Return class indices, lists of them, or numbers, one for each row of the column.

        Raises:
            ConfigurationError: Counts the rows with invalid labels, and says where they are.
        """
        values = table.columns[column]
        if self.meaning is None:
            return self.scores(table, column)
        meaning, allowed = self.meaning, self.allowed or listed(self.names)
        if self.kind.name == "labels":
            lists = [[meaning.get(part, -1) for part in parts(value, self.separator)] for value in values]
            wrong = [row for row, indices in enumerate(lists) if -1 in indices]
            _refuse(table, column, wrong, allowed)
            return [sorted(set(indices)) for indices in lists]
        indices = [meaning.get(value if isinstance(value, str) else spelled(value), -1) for value in values]
        _refuse(table, column, [row for row, index in enumerate(indices) if index < 0], allowed)
        return indices

    def scores(self, table: Table, column: str) -> list[float]:
        """Return the numbers of a column of scores, one for each row; see `encode`."""
        low, high = self.interval
        numbers = [finite(spelled(value)) for value in table.columns[column]]
        wrong = [row for row, number in enumerate(numbers) if number is None or not low <= number <= high]
        allowed = "a finite number" if low == -inf else f"a number in [{low:g}, {high:g}]"
        _refuse(table, column, wrong, allowed)
        return [number for number in numbers if number is not None]


def _refuse(table: Table, column: str, wrong: list[int], allowed: str) -> None:
    if wrong:
        example = cut(table.columns[column][wrong[0]])
        complaint = f"label {example} in {counted(wrong)}: {table.where(wrong)}; allowed is {allowed}"
        raise refusal(table.name, complaint)


def known_labels(task: Task, spellings: Iterable[str] = (), *, fold: bool = False) -> Labels:
    """Return how the labels of a known task are read: by name, or by index in the hub's order.

    Args:
        task: The task.
        spellings: The labels of the files. Indices may have a point, as pandas writes them.
        fold: Whether names may differ in case and blanks.
    """
    if task.regression:
        return Labels(Kind("regression", f"{task.name} is known"), interval=task.label_range)
    meaning = {str(index): index for index in range(len(task.labels))}
    meaning |= {name: index for index, name in enumerate(task.labels)}
    indices = {alike(text): index for text, index in meaning.items()}
    found = {text: indices[key] for text in spellings if (key := alike(text)) in indices}
    others = [text for text in found if text not in meaning and not isinstance(alike(text), Decimal)]
    allowed = listed((*task.labels, *map(str, range(len(task.labels)))))
    if others and not fold:
        allowed += "; --label-spelling fold ignores case and blanks"
    meaning |= {text: index for text, index in found.items() if fold or text not in others}
    return Labels(Kind("classes", f"{task.name} is known"), task.labels, meaning, allowed=allowed)


def learned_labels(task: Task, table: Table, column: str, choices: Choices) -> Labels:
    """Return how the labels of another file are read for a model that has learned a user's task.

    As in training, with the model's classes: labels are folded if they were then, and whole numbers with a
    point are classes without one.

    Args:
        task: What the model has learned.
        table: The file; no label is missing.
        column: The column of labels.
        choices: Those of the training.

    Raises:
        ConfigurationError: Labels of another kind, or that cannot be encoded.
    """
    kind = find_kind(table, column, task.kind)
    if task.regression:
        return Labels(kind, interval=task.label_range)
    separator = _separator(table, column) if task.several else ""
    index = {name: place for place, name in enumerate(task.labels)}
    if all(name == f"LABEL_{place}" for name, place in index.items()):
        index |= {str(place): place for place in index.values()}  # transformers' names of classes without one
    folded = choices.label_spelling == "fold" or kind.as_whole
    nearly = {alike(name): place for name, place in index.items()} if folded else {}
    found = {
        text: index.get(text, index.get(text.strip(), nearly.get(alike(text))))
        for text in _count(table, column, kind, separator)
    }
    meaning = {text: place for text, place in found.items() if place is not None}
    return Labels(kind, task.labels, meaning, separator)


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
        _refuse_scores_that_do_not_differ(train, column, labels)
        return labels
    separator = _separator(train, column) if kind.name == "labels" else ""
    counts = {split: _count(table, column, kind, separator) for split, table in tables.items()}
    spellings = grouped(counts)
    asked = [group for group in spellings.values() if len(group) > 1 and not kind.as_whole]
    if asked and choices.label_spelling is None:
        examples = "; ".join(listed(map(cut, sorted(group)), 80) for group in asked[:2])
        questions.append(
            f"{train.name}: labels differ only by case, blanks or zeros: {examples}: taken as different "
            "ones; --label-spelling fold makes each such group one label, --label-spelling exact keeps them "
            "apart"
        )
    named = named_groups(spellings, fold=choices.label_spelling == "fold", whole=kind.as_whole)
    names = ordered({named[text] for text in counts["train"]}, train.classes.get(column, ()))
    if len(names) < (1 if kind.name == "labels" else 2):
        raise refusal(
            train.name,
            f"every label is {listed(map(cut, names)) or 'empty'}: a task needs two classes, or scores "
            "(--kind regression)",
        )
    index = {name: place for place, name in enumerate(names)}
    meaning = {text: index[name] for text, name in named.items() if name in index}
    return Labels(kind, names, meaning, separator, questions=tuple(questions))


def _refuse_scores_that_do_not_differ(train: Table, column: str, labels: Labels) -> None:
    """Refuse scores that are all equal, or most of which become equal in 32 bits, in which models compute."""
    scores = labels.scores(train, column)
    different, rounded = len(set(scores)), len(set(array("f", scores)))
    if different < 2:
        raise refusal(train.name, f"every label is {cut(train.columns[column][0])}: scores have to differ")
    if 2 * rounded < different or rounded < 2:
        raise refusal(
            train.name,
            f"{quoted_column(column)} holds {different:,} different scores, such as "
            f"{cut(train.columns[column][0])}, of which {rounded:,} differ in 32 bits: subtract a constant "
            "from all",
        )


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
        if isinstance(value, str) and as_list(value, words=True) is None
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
