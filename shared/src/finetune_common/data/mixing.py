"""Batches over several tasks: each holds rows of one task; the seed decides the order."""

from collections.abc import Mapping, Sequence
from math import ceil, sqrt

import numpy as np

from finetune_common.data.batches import epoch_batches
from finetune_common.errors import check_choice

__all__ = ["batch_counts", "mixed_batches"]

SAMPLINGS = ("size", "sqrt")
"""How often a task is drawn: in proportion to its rows, or to their square root."""


def batch_counts(sizes: Sequence[int], batch_size: int, sampling: str = "size") -> list[int]:
    """Return how many batches of each task an epoch has.

    With `size`, task t has n_t = ceil(N_t / B) batches, so that each of its N_t rows comes once. With `sqrt`,
    the sum of all n_t batches is divided in proportion to sqrt(N_t), so that small tasks come more often.
    Every task has at least one batch.

    Args:
        sizes: Rows of each task, N_t.
        batch_size: Rows of a batch, B.
        sampling: `size` or `sqrt`.

    Examples:
        >>> batch_counts([900, 100], 10), batch_counts([900, 100], 10, "sqrt")
        ([90, 10], [75, 25])
    """
    check_choice("task_sampling", sampling, SAMPLINGS)
    epochs = [ceil(size / batch_size) for size in sizes]
    if sampling == "size":
        return epochs
    roots = [sqrt(size) for size in sizes]
    return [max(1, round(sum(epochs) * root / sum(roots))) for root in roots]


def mixed_batches(
    lengths: Mapping[str, Sequence[int] | np.ndarray],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    sampling: str = "size",
    group_by_length: bool = False,
) -> list[list[int]]:
    """Return the rows of every batch of an epoch over several tasks, the tasks' batches shuffled.

    Rows are numbered through all tasks in the order of `lengths`. Each task has a stream of epochs, drawn by
    `epoch_batches`; an epoch here takes the next `batch_counts` batches of each stream. So a task that is
    drawn more often repeats its rows, and every row of a large task comes up eventually.

    Args:
        lengths: Task → tokens of each of its rows.
        batch_size: Rows of a batch; the last batch of a task's epoch may be short.
        seed: At least 0.
        epoch: From 0.
        sampling: `size` or `sqrt`, see `batch_counts`.
        group_by_length: See `epoch_batches`.

    Examples:
        >>> batches = mixed_batches({"a": [7] * 4, "b": [7] * 2}, 2, seed=0, epoch=0)
        >>> sorted(row for batch in batches for row in batch), sorted(map(max, batches))[-1]
        ([0, 1, 2, 3, 4, 5], 5)
    """
    sizes = [len(rows) for rows in lengths.values()]
    batches: list[list[int]] = []
    before = 0
    for task_lengths, count in zip(lengths.values(), batch_counts(sizes, batch_size, sampling), strict=True):
        per_epoch = ceil(len(task_lengths) / batch_size)
        first, last = epoch * count, (epoch + 1) * count
        stream: list[list[int]] = []
        for round_ in range(first // per_epoch, ceil(last / per_epoch)):
            stream += epoch_batches(
                task_lengths, batch_size, seed=seed, epoch=round_, group_by_length=group_by_length
            )
        skipped = first % per_epoch
        batches += [[before + row for row in rows] for rows in stream[skipped : skipped + count]]
        before += len(task_lengths)
    order = np.random.default_rng([seed, epoch, len(lengths)]).permutation(len(batches))
    return [batches[number] for number in order]
