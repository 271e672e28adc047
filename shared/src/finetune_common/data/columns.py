"""The columns of a file: texts, label, unused ones, and questions to the user."""

from dataclasses import dataclass, field
from datetime import datetime

from finetune_common.aliases import Rows
from finetune_common.data.choices import Choices
from finetune_common.data.messages import counted, cut, listed, refusal
from finetune_common.data.separated import UNNAMED
from finetune_common.data.tables import Table
from finetune_common.data.values import MISSING, NUMBER, is_missing, well_formed
from finetune_common.tasks import TASKS, Task

__all__ = ["Columns", "choose_columns", "find_label", "find_texts", "read_texts"]

NUMBERING = ("id", "idx", "index")
"""Names of columns that number rows, whatever their content."""

RESERVED = ("idx", "label")
"""Names of a task's columns other than the texts."""


@dataclass(frozen=True)
class Columns:
    """The roles of a file's columns.

    Attributes:
        texts: One column, or two for pairs.
        label: The column of the label.
        aside: Every other column → why it is not used.
        questions: Ambiguities, and how they are resolved unless an option says otherwise.
    """

    texts: tuple[str, ...]
    label: str
    aside: dict[str, str] = field(default_factory=dict[str, str])
    questions: tuple[str, ...] = ()


def choose_columns(table: Table, choices: Choices, task: Task | None = None) -> Columns:
    """Find the roles of a training file's columns; columns named in `choices` are used as given.

    A known task has its own columns. Otherwise the label is the column `label` or `labels`, and the text is
    the column that holds words. Numbers, dates and likely indices are left aside. If two columns hold words,
    the user is asked, unless a GLUE task has a pair of these names.

    Raises:
        ConfigurationError: A missing column, or no column or more than two that hold words.
    """
    label = _label(table, choices, task)
    if task is not None:
        texts = choices.text_columns or _known_texts(table, task)
        if len(texts) != len(task.columns):
            raise refusal(
                table.name, f"--text-columns names {len(texts)} columns, {task.name} has {len(task.columns)}"
            )
        aside = {name: "not used" for name in table.columns if name not in (*texts, label)}
        return Columns(table.require(texts, "--text-columns"), label, aside)
    others = [name for name in table.columns if name != label]
    if choices.text_columns:
        texts = table.require(choices.text_columns, "--text-columns")
        if clash := [name for name in texts if name in RESERVED]:
            raise refusal(
                table.name, f"a column of text cannot be called {clash[0]!r} here: rename it in the file"
            )
        return Columns(texts, label, {name: "not used" for name in others if name not in texts})
    words, aside = find_texts(table.columns, label)
    if not words:
        raise refusal(
            table.name,
            f"no column holds words apart from the label {cut(label)}: "
            f"{listed(_described(aside), 160) or 'there is no other'}; "
            "--text-columns NAME takes one anyway",
        )
    if len(words) > 2:
        raise refusal(
            table.name,
            f"{len(words)} columns could be the text: {listed(words)}: give one, or two for pairs, "
            "as --text-columns NAME,NAME",
        )
    if len(words) == 1 or tuple(words) in _known_pairs():
        return Columns(tuple(words), label, aside)
    question = (
        f"{table.name}: {cut(words[0])} and {cut(words[1])} could both be the text, or a pair of texts: "
        f"taken as a pair; confirm with --text-columns {words[0]},{words[1]}, or give one column: "
        f"--text-columns {words[0]}"
    )
    return Columns(tuple(words), label, aside, (question,))


def find_texts(columns: Rows, label: str | None) -> tuple[list[str], dict[str, str]]:
    """Return the columns that hold words, and every other one → why it does not; the label is in neither.

    Two columns of a GLUE task's names have that task's order.
    """
    others = [name for name in columns if name != label]
    aside = {name: why for name in others if (why := _no_text(name, columns[name]))}
    words = [name for name in others if name not in aside]
    return words[::-1] if tuple(words[::-1]) in _known_pairs() else words, aside


def _known_pairs() -> set[tuple[str, ...]]:
    return {known.columns for known in TASKS.values() if len(known.columns) == 2}


def _described(aside: dict[str, str]) -> list[str]:
    return [f"{name[:40]} ({why})" for name, why in aside.items()]


def _label(table: Table, choices: Choices, task: Task | None) -> str:
    if choices.label_column is not None:
        return table.require([choices.label_column], "--label-column")[0]
    if (label := find_label(table.columns, task)) is not None:
        return label
    wanted = " or ".join(map(repr, _label_names(task)))
    raise refusal(
        table.name,
        f"no column {wanted} among {listed(table.columns)}: --label-column NAME names the label's column",
    )


def find_label(columns: Rows, task: Task | None = None) -> str | None:
    """Return the column of the label by its name, of a known task or of any; None if there is none."""
    names = _label_names(task)
    if present := [name for name in names if name in columns]:
        return present[0]
    alike = [column for column in columns if column.casefold() in names]
    return alike[0] if len(alike) == 1 else None


def _label_names(task: Task | None) -> dict[str, None]:
    return dict.fromkeys(("label", task.official_label) if task else ("label", "labels"))


def _known_texts(table: Table, task: Task) -> tuple[str, ...]:
    texts: list[str] = []
    for name, other in zip(task.columns, task.official_columns or task.columns, strict=True):
        if present := [column for column in (name, other) if column in table.columns]:
            texts.append(present[0])
        else:
            wanted = " or ".join(map(repr, dict.fromkeys((name, other))))
            raise refusal(
                table.name,
                f"no column {wanted} among {listed(table.columns)}: --text-columns says which hold the texts",
            )
    return tuple(texts)


def read_texts(table: Table, column: str) -> list[str]:
    """Return the texts of a column; a missing one is empty.

    Raises:
        ConfigurationError: Counts the rows with something else, and says where they are.
    """
    values = ["" if value is None else value for value in table.columns[column]]
    wrong = [row for row, value in enumerate(values) if not isinstance(value, str)]
    broken = [] if wrong else [row for row, value in enumerate(values) if not well_formed(value)]
    for rows, expected in ((wrong, "text"), (broken, "text without invalid characters")):
        if rows:
            raise refusal(
                table.name,
                f"column {cut(column)} is {cut(values[rows[0]])} in {counted(rows)}: "
                f"{table.where(rows)}; expected {expected}",
            )
    return values


def _no_text(name: str, values: list[object]) -> str:
    """Say why a column cannot be the text; empty if it can."""
    if name.startswith((UNNAMED, "__index_level_")):
        return "an index: it has no name"
    if name.casefold() in NUMBERING:
        return "an index: its name says so"
    if any(_holds_words(value) for value in values):
        return ""
    filled = [value for value in values if not is_missing(value)]
    if not filled:
        return "empty"
    for kind, what in ((list, "lists"), (bytes, "bytes that are no text in UTF-8")):
        if all(isinstance(value, kind) for value in filled):
            return what
    texts = [str(value).strip() for value in filled]
    if all(NUMBER.fullmatch(text) for text in texts):
        return "an index: it counts the rows" if _counts(texts) else "numbers"
    return "dates" if all(map(_is_date, texts)) else "no letters"


def _holds_words(value: object) -> bool:
    if not isinstance(value, str):
        return False
    text = value.strip()
    if text.isdigit() or not any(map(str.isalpha, text)):
        return False
    return text not in MISSING and not NUMBER.fullmatch(text) and not _is_date(text)


def _is_date(text: str) -> bool:
    if len(text) > 40 or not text[:1].isdigit():
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _counts(texts: list[str]) -> bool:
    """Say whether whole numbers run through consecutive values, each once."""
    if not all(text.isascii() and text.isdigit() and len(text) < 16 for text in texts):
        return False
    numbers = set(map(int, texts))
    return len(numbers) == len(texts) == max(numbers) - min(numbers) + 1
