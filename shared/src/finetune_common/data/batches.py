"""Batches: their rows, order and padding. The order depends only on the seed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from finetune_common.errors import ConfigurationError, check_number
from finetune_common.tasks import Task, get_task

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

__all__ = ["Collator", "epoch_batches", "evaluation_batches", "make_loader", "to_row_order", "token_lengths"]

_BATCHES_SORTED_TOGETHER = 50


def token_lengths(dataset: "datasets.Dataset") -> np.ndarray:
    """Return the number of tokens of each row of a tokenised split, shape (rows,).

    Raises:
        ConfigurationError: `input_ids` is no column of lists of whole numbers.
    """
    table = dataset.select_columns(["input_ids"]).with_format("arrow")[:]
    return _token_lists(table, "input_ids")[1].to_numpy()


def _token_lists(table: "pa.Table", name: str) -> tuple["pa.ChunkedArray", "pa.ChunkedArray"]:
    """Return a column's tokens, row after row, and the number of tokens of each row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table[name]
    refusal = ConfigurationError(
        f"column {name} of type {column.type} holds no tokens: each row has to be a list of whole numbers"
    )
    try:  # arrow says what is a list: it has several types of lists
        tokens, lengths = pc.list_flatten(column), pc.list_value_length(column)
    except NotImplementedError:
        raise refusal from None
    if not pa.types.is_integer(tokens.type) or tokens.null_count + column.null_count:
        raise refusal
    return tokens, lengths


def epoch_batches(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    group_by_length: bool = False,
) -> list[list[int]]:
    """Return the rows of every batch of an epoch: each row once, the short batch last.

    Drawn from a separate generator, seeded with (seed, epoch): the global random streams and the number of
    workers do not matter.

    Args:
        lengths: Tokens of each row; without `group_by_length` only their number matters.
        batch_size: Rows per batch, at least 1.
        seed: At least 0.
        epoch: From 0.
        group_by_length: Sort by length within shuffled stretches of 50 batches, then shuffle the batches:
            less padding, still a random order.

    Examples:
        >>> epoch_batches([7] * 5, 2, seed=0, epoch=0) == epoch_batches([7] * 5, 2, seed=0, epoch=0)
        True
        >>> [len(batch) for batch in epoch_batches([7] * 5, 2, seed=0, epoch=0)]
        [2, 2, 1]
    """
    check_number("batch_size", batch_size, at_least=1)
    check_number("seed", seed, at_least=0)
    check_number("epoch", epoch, at_least=0)
    generator = np.random.default_rng([seed, epoch])
    rows = generator.permutation(len(lengths))
    full = len(rows) - len(rows) % batch_size
    batches, rest = rows[:full].reshape(-1, batch_size), rows[full:]
    if group_by_length and full:
        lengths = np.asarray(lengths)
        stretch = _BATCHES_SORTED_TOGETHER * batch_size
        sorted_rows = [
            part[np.argsort(lengths[part], kind="stable")]
            for part in (rows[start : min(start + stretch, full)] for start in range(0, full, stretch))
        ]
        batches = generator.permutation(np.concatenate(sorted_rows).reshape(-1, batch_size))
    return batches.tolist() + ([rest.tolist()] if len(rest) else [])


def evaluation_batches(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[list[int]]:
    """Return the rows of every batch, longest first to reduce padding; see `to_row_order`.

    Examples:
        >>> evaluation_batches([3, 9, 5], 2)
        [[1, 2], [0]]
    """
    check_number("batch_size", batch_size, at_least=1)
    rows = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]


def to_row_order(batches: Sequence[Sequence[int]], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the outputs of `batches`, one row per row of the split, in the split's order.

    Examples:
        >>> to_row_order([[1, 2], [0]], [torch.tensor([10, 20]), torch.tensor([0])])
        tensor([ 0, 10, 20])
    """
    rows = torch.tensor([row for batch in batches for row in batch])
    joined = torch.cat(list(outputs))
    ordered = torch.empty_like(joined)
    ordered[rows.to(joined.device)] = joined
    return ordered


class Collator:
    """Rows → tensors, padded to the longest row of the batch.

    Every token column becomes int64 of shape (batch, length). `labels`, if present, becomes int64 of shape
    (batch,); float32 for regression; float32 of shape (batch, labels) for several labels per row. `idx` is
    left out: batch i of a loader holds the rows `batches[i]`.

    Args:
        tokenizer: Gives the padding ids and the padding side.
        task: The task or its name.
        pad_to_multiple_of: Round the length up, 8 for tensor cores.

    Raises:
        ConfigurationError: The tokenizer has no padding token.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        task: str | Task,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise ConfigurationError(
                f"tokenizer {type(tokenizer).__name__} has no padding token: set tokenizer.pad_token, "
                f"for instance to tokenizer.eos_token"
            )
        check_number("pad_to_multiple_of", pad_to_multiple_of or 1, at_least=1)
        self.multiple = pad_to_multiple_of or 1
        self.left = tokenizer.padding_side == "left"
        self.padding = {
            "input_ids": tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": tokenizer.pad_token_type_id,
        }
        self.label_dtype = np.int64 if get_task(task).kind == "classes" else np.float32

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of these rows."""
        longest = max(len(row["input_ids"]) for row in rows)
        length = -(-longest // self.multiple) * self.multiple
        batch: dict[str, torch.Tensor] = {}
        for name, fill in self.padding.items():
            if name in rows[0]:
                padded = np.full((len(rows), length), fill, dtype=np.int64)
                for target, row in zip(padded, rows, strict=True):
                    values = row[name]
                    target[length - len(values) if self.left else 0 :][: len(values)] = values
                batch[name] = torch.as_tensor(padded)
        if "labels" in rows[0]:
            labels = np.array([row["labels"] for row in rows], dtype=self.label_dtype)
            batch["labels"] = torch.as_tensor(labels)
        return batch


class _Rows(Dataset[dict[str, np.ndarray]]):
    """The columns of a tokenised split as flat arrays: a row is a few slices."""

    def __init__(self, dataset: "datasets.Dataset") -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        table = dataset.with_format("arrow")[:]
        labels = table["labels"]
        if pa.types.is_nested(labels.type):  # zeros and ones, equally many in every row
            self.labels = pc.list_flatten(labels).to_numpy().reshape(table.num_rows, -1)
        else:
            self.labels = labels.combine_chunks().to_numpy()
        self.flat: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if name in table.column_names:
                tokens, lengths = _token_lists(table, name)
                ends = np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)])
                self.flat[name] = (tokens.to_numpy(), ends)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        tokens = {name: values[ends[row] : ends[row + 1]] for name, (values, ends) in self.flat.items()}
        return {**tokens, "labels": self.labels[row]}


def make_loader(
    dataset: "datasets.Dataset",
    batches: Sequence[Sequence[int]],
    collator: Collator,
    num_workers: int = 0,
    *,
    pin_memory: bool = False,
) -> DataLoader[dict[str, np.ndarray]]:
    """Return a loader that yields `batches` in order and does not touch the global random streams.

    Args:
        dataset: A tokenised split.
        batches: Rows of each batch, from `epoch_batches` or `evaluation_batches`.
        collator: Pads.
        num_workers: Processes that prepare batches ahead; 0 prepares them in this one.
        pin_memory: Use pinned memory, so that copies to CUDA run in parallel with computation.

    Raises:
        ConfigurationError: A column of tokens holds something else than lists of whole numbers.
    """
    return DataLoader(
        _Rows(dataset),
        batch_sampler=batches,  # pyright: ignore[reportArgumentType]  # any iterable of lists will do
        collate_fn=collator,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(0),
    )
