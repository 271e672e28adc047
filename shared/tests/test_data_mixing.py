"""Batches over several tasks: in proportion to size every row once, to its root by the definition."""

from collections import Counter
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_common.data import batch_counts, epoch_batches, mixed_batches
from finetune_common.errors import ConfigurationError

SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=4)


def lengths_of(sizes: list[int]) -> dict[str, np.ndarray]:
    return {f"task{number}": np.arange(size) % 7 + 1 for number, size in enumerate(sizes)}


@given(sizes=SIZES, batch_size=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_in_proportion_to_size_an_epoch_has_every_row_once_and_a_batch_one_task(
    sizes: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    batches = mixed_batches(lengths_of(sizes), batch_size, seed=seed, epoch=epoch)
    ends = np.cumsum(sizes)
    assert sorted(row for batch in batches for row in batch) == list(range(sum(sizes)))
    for batch in batches:
        assert len({int(np.searchsorted(ends, row, side="right")) for row in batch}) == 1
        assert 1 <= len(batch) <= batch_size


@given(sizes=SIZES, batch_size=st.integers(1, 9), epochs=st.integers(1, 4))
def test_by_the_root_of_size_a_task_goes_through_its_own_epochs_one_after_the_other(
    sizes: list[int], batch_size: int, epochs: int
) -> None:
    lengths = lengths_of(sizes)
    ends = np.cumsum([0, *sizes])
    drawn = [
        mixed_batches(lengths, batch_size, seed=3, epoch=epoch, sampling="sqrt") for epoch in range(epochs)
    ]
    counts = batch_counts(sizes, batch_size, "sqrt")
    total = sum(ceil(size / batch_size) for size in sizes)
    for number, size in enumerate(sizes):
        share = total * sqrt(size) / sum(map(sqrt, sizes))
        assert counts[number] == max(1, round(share))
        own = [
            Counter(
                tuple(row - ends[number] for row in batch)
                for batch in epoch
                if ends[number] <= batch[0] < ends[number + 1]
            )
            for epoch in drawn
        ]
        stream: list[list[int]] = []
        while len(stream) < epochs * counts[number]:
            stream += epoch_batches(
                [1] * size, batch_size, seed=3, epoch=len(stream) // ceil(size / batch_size)
            )
        for epoch, found in enumerate(own):
            expected = stream[epoch * counts[number] : (epoch + 1) * counts[number]]
            assert found == Counter(map(tuple, expected))


def test_the_order_is_a_function_of_seed_and_epoch_and_mixes_the_tasks() -> None:
    lengths = lengths_of([400, 400])
    first = mixed_batches(lengths, 8, seed=0, epoch=0)
    assert first == mixed_batches(lengths, 8, seed=0, epoch=0)
    assert first != mixed_batches(lengths, 8, seed=0, epoch=1)
    assert first != mixed_batches(lengths, 8, seed=1, epoch=0)
    owners = [batch[0] >= 400 for batch in first]
    changes = sum(one != other for one, other in pairwise(owners))
    assert 30 < changes < 70  # of 99 neighbours about every second differs


def test_a_sampling_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="task_sampling='rows'"):
        batch_counts([4, 4], 2, "rows")
