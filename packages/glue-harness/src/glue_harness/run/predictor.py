"""Predictions of a trained model: labels and scores of texts, in batches of similar length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetune_common.aliases import JsonObject
from finetune_common.data import Collator, evaluation_batches, to_row_order
from finetune_common.data.choices import Choices
from finetune_common.data.tokens import encode
from finetune_common.errors import ConfigurationError, shown
from finetune_common.tasks import Task
from glue_harness.run.fit import check_positions

__all__ = ["Predictor"]

WINDOW = 16384
"""Rows to tokenise and sort by length at once."""


@dataclass
class Predictor:
    """A trained classifier with its tokenizer.

    Attributes:
        model: A transformers classifier.
        tokenizer: The model's.
        task: The task it learned.
        max_length: Tokens to which a text is truncated.
        choices: How the rows of its training were read.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    task: Task
    max_length: int
    choices: Choices = field(default_factory=Choices)

    @property
    def labels(self) -> list[str]:
        """The names of its labels, in the order of its scores."""
        return [str(name) for _, name in sorted(self.model.config.id2label.items())]

    @torch.inference_mode()
    def logits(
        self,
        *columns: Sequence[str],
        batch_size: int = 32,
        advance: Callable[[int], None] = lambda rows: None,
    ) -> np.ndarray:
        """Return the model's output in float32, of shape (rows, labels), in row order.

        Args:
            columns: The texts, one per row; two columns for pairs.
            batch_size: Rows at a time.
            advance: Called with the number of rows done since its last call.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, collate = self.model.to(device).eval(), Collator(self.tokenizer, self.task)
        parts = []
        for start in range(0, len(columns[0]), WINDOW):
            texts = [list(column[start : start + WINDOW]) for column in columns]
            pair = texts[1] if len(texts) == 2 else None
            encoded = encode(self.tokenizer, texts[0], pair, self.max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            check_positions(model, max(lengths))
            batches, outputs = evaluation_batches(lengths, batch_size), []
            for rows in batches:
                batch = collate([{name: encoded[name][row] for name in encoded} for row in rows])
                inputs = {name: values.to(device) for name, values in batch.items()}
                outputs.append(model(**inputs).logits.float().cpu())
                advance(len(rows))
            parts.append(to_row_order(batches, outputs).numpy())
        return np.concatenate(parts)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return each label's score: probabilities that sum to 1, or separate ones if several may apply.

        A regression's scores are its output.
        """
        kind, outputs = self.model.config.problem_type, torch.from_numpy(logits)
        if self.task.regression:
            return logits
        several = kind == "multi_label_classification"
        return (outputs.sigmoid() if several else outputs.softmax(-1)).numpy()

    def answers(self, scores: np.ndarray) -> list[str | list[str] | float]:
        """Return the answer for each row of scores: a label, the labels above ½, or a number."""
        if self.task.regression:
            return [float(row[0]) for row in scores]
        if self.model.config.problem_type == "multi_label_classification":
            return [
                [name for name, score in zip(self.labels, row, strict=True) if score > 0.5] for row in scores
            ]
        return [self.labels[number] for number in scores.argmax(axis=1)]

    def predict(self, texts: Sequence[str | Sequence[str]], batch_size: int = 32) -> list[JsonObject]:
        """Return the model's answers for texts.

        Args:
            texts: Strings; for a task of pairs, pairs of strings.
            batch_size: Rows at a time.

        Returns:
            For each text `{"label": name, "scores": {name: score}}`, or `{"score": number}` of a regression.

        Raises:
            ConfigurationError: One text where pairs are needed, or the other way round.
        """
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        wanted = len(self.task.columns) or max(map(len, rows), default=1)
        for row in rows:
            if len(row) != wanted or not all(isinstance(part, str) for part in row):
                expected = "pairs of texts" if wanted == 2 else "one text each"
                raise ConfigurationError(f"predict: {shown(row)} does not fit the task: give {expected}")
        if not rows:
            return []
        scores = self.scores(self.logits(*zip(*rows, strict=True), batch_size=batch_size))
        if self.task.regression:
            return [{"score": value} for value in self.answers(scores)]
        return [
            {"label": answer, "scores": dict(zip(self.labels, map(float, row), strict=True))}
            for answer, row in zip(self.answers(scores), scores, strict=True)
        ]
