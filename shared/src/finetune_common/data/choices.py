"""A user's choices about their files; everything else is read from the files."""

from dataclasses import dataclass
from typing import Literal

from finetune_common.errors import ConfigurationError, check_choice, check_number

__all__ = ["KINDS", "Choices"]

KINDS = ("classes", "labels", "regression")
"""One class per row, any number of labels per row, or a number."""

DELIMITERS = {"tab": "\t", "\\t": "\t"}
"""Spellings of a tab on a command line."""


@dataclass(frozen=True)
class Choices:
    """How to read a user's files.

    Args:
        text_columns: One column of text, or two for pairs; by default the only one that holds words.
        label_column: The column of the label; by default `label` or `labels`.
        kind: `classes`, `labels` (any number per row) or `regression`; by default read from the labels.
        metric: The primary metric: a name of `finetune_common.metrics` or of a scikit-learn scorer.
        delimiter: One character, or `tab`; by default a comma in csv files, a tab in tsv files.
        encoding: Of text files; UTF-8 may begin with a byte-order mark.
        label_spelling: Whether labels that differ only by case, blanks or leading zeros are different
            (`exact`) or one class (`fold`); by default the user is asked.
        drop_unlabelled: Leave out rows without a label, instead of refusing the file.
        validation_share: Share of the training rows, above 0 and below 1, to evaluate on if there is no file
            for it.

    Raises:
        ConfigurationError: A value that is not allowed.

    Examples:
        >>> Choices(text_columns=("title", "body"), kind="classes", delimiter="tab").delimiter
        '\\t'
    """

    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    kind: Literal["classes", "labels", "regression"] | None = None
    metric: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    label_spelling: Literal["exact", "fold"] | None = None
    drop_unlabelled: bool = False
    validation_share: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text_columns", tuple(self.text_columns))
        if len(self.text_columns) > 2:
            raise ConfigurationError(
                f"text_columns names {len(self.text_columns)} columns: give one, or two for pairs of texts"
            )
        if len(set(self.text_columns)) < len(self.text_columns) or self.label_column in self.text_columns:
            raise ConfigurationError("text_columns and label_column name a column twice: give different ones")
        if self.kind is not None:
            check_choice("kind", self.kind, KINDS)
        if self.label_spelling is not None:
            check_choice("label_spelling", self.label_spelling, ("exact", "fold"))
        if self.validation_share is not None:
            check_number("validation_share", self.validation_share, above=0, below=1)
        if self.delimiter is not None:
            object.__setattr__(self, "delimiter", DELIMITERS.get(self.delimiter, self.delimiter))
            if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
                raise ConfigurationError(
                    f"delimiter={self.delimiter!r} cannot separate cells: give one character, "
                    "such as ';', or tab"
                )
        try:
            "".encode(self.encoding).decode(self.encoding)
        except (LookupError, UnicodeError, ValueError):
            raise ConfigurationError(
                f"encoding={self.encoding!r} is unknown: give one that Python knows, such as utf-8, "
                "cp1252 or utf-16"
            ) from None
