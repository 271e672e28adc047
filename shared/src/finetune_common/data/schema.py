"""How the rows of a task are read: printed before training, kept with the result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from finetune_common.aliases import JsonObject
from finetune_common.data.messages import listed
from finetune_common.data.values import is_list, is_tuple

__all__ = ["Schema", "Source"]


@dataclass(frozen=True)
class Source:
    """One split: the source of its rows, and counts.

    Attributes:
        file: The file's name, without its folder.
        rows: How many rows are used.
        unlabelled: How many rows without a label were left out.
        empty: Rows with an empty text.
        duplicates: Rows whose texts occurred earlier in this split.
        in_train: Rows whose texts are also in the training rows.
        labels: Class → rows; empty for scores.
    """

    file: str
    rows: int
    unlabelled: int = 0
    empty: int = 0
    duplicates: int = 0
    in_train: int = 0
    labels: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Schema:
    """How the files of a task are read, and facts about them.

    `str(schema)` is a block for people, `as_dict()` is plain data.

    Attributes:
        task: The task's name.
        sources: Split → its file and counts.
        text_columns: One, or two for pairs.
        label_column: The column of the label.
        kind: `classes`, `labels` or `regression`.
        because: The reason for this kind.
        classes: Names of the classes in the order of their indices.
        metrics: The metrics of an evaluation.
        primary: The metric that the best checkpoint is chosen by.
        aside: Column → why it is not used.
        usual: The score of a constant answer without a model.
        tokens: Length of the rows in tokens, if a tokenizer is known.
        questions: Ambiguities, and how they were resolved.
        unused: Splits of a dataset that are not used → why.
    """

    task: str
    sources: Mapping[str, Source]
    text_columns: tuple[str, ...]
    label_column: str
    kind: str
    because: str
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    primary: str
    aside: Mapping[str, str] = field(default_factory=dict[str, str])
    usual: JsonObject = field(default_factory=JsonObject)
    tokens: JsonObject = field(default_factory=JsonObject)
    questions: tuple[str, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict[str, str])

    def as_dict(self) -> JsonObject:
        """Return plain data for `result.json`."""
        plain = asdict(self)
        return {key: list(value) if is_tuple(value) else value for key, value in plain.items()}

    @classmethod
    def from_dict(cls, plain: JsonObject) -> "Schema":
        """Return the schema from the plain data of `as_dict`."""
        sources = {split: Source(**source) for split, source in plain["sources"].items()}
        fields: JsonObject = {key: tuple(value) if is_list(value) else value for key, value in plain.items()}
        fields["sources"] = sources
        return cls(**fields)

    def with_tokens(self, tokens: JsonObject) -> "Schema":
        """Return the schema with the length of its rows in tokens, as `token_facts` measures it."""
        return replace(self, tokens=tokens)

    def __str__(self) -> str:
        lines = [f"{self.task}: {self.kind}, {self.because}"]
        for split, source in self.sources.items():
            lines.append(f"  {split:<11} {source.rows:,} rows of {source.file}{_counts(source)}")
        if self.unused:
            lines.append(f"  {'not used':<11} {_with_reasons(self.unused)}")
        lines.append(f"  {'text':<11} {', '.join(self.text_columns)}")
        lines.append(f"  {'label':<11} {self.label_column}")
        if self.aside:
            lines.append(f"  {'left aside':<11} {_with_reasons(self.aside)}")
        lines += self._class_lines()
        lines.append(
            f"  {'metrics':<11} "
            f"{', '.join(f'{m} (primary)' if m == self.primary else m for m in self.metrics)}"
        )
        if self.usual:
            lines.append(f"  {'no model':<11} {self._usual()}")
        if self.tokens:
            lines.append(f"  {'tokens':<11} {_tokens(self.tokens)}")
        lines += [f"  {'to decide':<11} {question}" for question in self.questions]
        return "\n".join(lines)

    def _class_lines(self, most: int = 20) -> list[str]:
        if not self.classes:
            return []
        splits = list(self.sources)
        lines = [f"  {'classes':<11} {len(self.classes)}, rows in {' / '.join(splits)}"]
        width = max(len(name[:40]) for name in self.classes[:most])
        for name in self.classes[:most]:
            counts = " / ".join(f"{source.labels.get(name, 0):,}" for source in self.sources.values())
            lines.append(f"    {name[:40]:<{width}}  {counts}")
        if (rest := len(self.classes) - most) > 0:
            lines.append(f"    and {rest:,} more")
        return lines

    def _usual(self) -> str:
        answer = self.usual["answer"]
        if self.kind == "regression":
            return f"always the mean, {answer:.4g}: root mean squared error {self.usual['spread']:.4g}"
        label = listed(answer) or "no label" if is_list(answer) else answer[:60]
        return f"always {label}: " + ", ".join(
            f"{name} {value:.4f}" for name, value in self.usual["metrics"].items()
        )


def _with_reasons(reasons: Mapping[str, str]) -> str:
    return listed((f"{name} ({why})" for name, why in reasons.items()), 300)


def _counts(source: Source) -> str:
    labels = [
        f"{count:,} {what}"
        for count, what in (
            (source.unlabelled, "without a label left out"),
            (source.empty, "with an empty text"),
            (source.duplicates, "duplicates"),
            (source.in_train, "also in train"),
        )
        if count
    ]
    return f" ({', '.join(labels)})" if labels else ""


def _tokens(tokens: JsonObject) -> str:
    return (
        f"median {tokens['median']}, 95 % have at most {tokens['most']}, {100 * tokens['truncated']:.1f} "
        "% longer than "
        f"{tokens['max_length']} and truncated"
        + (f" (of {tokens['rows']:,} rows)" if tokens["sampled"] else "")
    )
