"""Batches: each row once, an order that only the seed decides, padding that the longest row decides."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, LargeList, List, Value, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from finetune_common.data import (
    Collator,
    epoch_batches,
    evaluation_batches,
    load_task,
    make_loader,
    to_row_order,
    token_lengths,
    tokenize,
)
from finetune_common.demo import demo_tokenizer
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import Task


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    data = load_task("demo-entailment", splits=["validation"])
    return tokenize(data, demo_tokenizer(), "demo-entailment", 32, tmp_path_factory.mktemp("cache"))[
        "validation"
    ]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=200),
    st.integers(1, 17),
    st.integers(0, 2**40),
    st.integers(0, 9),
    st.booleans(),
)
def test_an_epoch_holds_each_row_once_and_the_short_batch_last(lengths, size, seed, epoch, group):
    batches = epoch_batches(lengths, size, seed=seed, epoch=epoch, group_by_length=group)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    assert len(batches[-1]) == (len(lengths) % size or size)


@pytest.mark.parametrize("group", [False, True])
def test_the_order_is_a_function_of_seed_and_epoch(group):
    lengths = np.random.default_rng(0).integers(5, 60, 200)

    def order(seed, epoch):
        return epoch_batches(lengths, 16, seed=seed, epoch=epoch, group_by_length=group)

    assert order(3, 1) == order(3, 1)
    different = [order(3, 1), order(3, 2), order(4, 1), order(1, 3)]
    assert len({str(batches) for batches in different}) == 4


def test_every_row_is_equally_likely_to_come_first():
    """2,000 seeds over 10 rows: each count is binomial(2000, 0.1), 5 standard deviations are 67."""
    counts = np.zeros(10)
    for seed in range(2000):
        counts[epoch_batches([1] * 10, 1, seed=seed, epoch=0)[0][0]] += 1
    assert np.abs(counts - 200).max() < 67


def test_the_orders_themselves_are_pinned():
    assert epoch_batches([1] * 7, 3, seed=0, epoch=0) == [[2, 4, 3], [6, 5, 0], [1]]


def test_grouping_by_length_pads_less_and_stays_random():
    lengths = np.random.default_rng(0).integers(5, 60, 2000)

    def padded(batches):
        return sum(len(batch) * max(lengths[batch]) for batch in batches) / lengths.sum()

    plain = epoch_batches(lengths, 16, seed=0, epoch=0)
    grouped = epoch_batches(lengths, 16, seed=0, epoch=0, group_by_length=True)
    assert padded(grouped) < 1.1 < 1.5 < padded(plain)
    longest = np.array([max(lengths[batch]) for batch in grouped])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4  # 125 batches: 4 standard errors


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9))
def test_evaluation_goes_from_long_to_short_and_back_to_row_order(lengths, size):
    batches = evaluation_batches(lengths, size)
    visited = [row for batch in batches for row in batch]
    assert [lengths[row] for row in visited] == sorted(lengths, reverse=True)
    outputs = [torch.tensor([[row, -row] for row in batch]) for batch in batches]
    assert to_row_order(batches, outputs).tolist() == [[row, -row] for row in range(len(lengths))]


def test_lengths_are_those_of_the_rows_also_of_a_selection(encoded):
    chosen = encoded.select([7, 3, 400])
    assert token_lengths(chosen).tolist() == [len(ids) for ids in chosen["input_ids"]]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_a_batch_is_what_the_tokenizer_itself_would_pad(encoded, side, multiple):
    tokenizer = demo_tokenizer()
    tokenizer.padding_side = side
    batches = epoch_batches(token_lengths(encoded), 16, seed=0, epoch=0)
    loader = make_loader(encoded, batches, Collator(tokenizer, "demo-entailment", multiple))
    for rows, batch in zip(batches, loader, strict=True):
        source = encoded[rows]
        tokens = {name: source[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        expected = tokenizer.pad(tokens, pad_to_multiple_of=multiple, return_tensors="pt")
        assert set(batch) == {*tokens, "labels"}
        for name in tokens:
            assert torch.equal(batch[name], expected[name])
        assert batch["labels"].tolist() == source["labels"]
        assert batch["labels"].dtype == torch.int64


def test_regression_labels_are_float32(tmp_path):
    data = load_task("demo-similarity", splits=["validation"])
    encoded = tokenize(data, demo_tokenizer(), "demo-similarity", 32, tmp_path)["validation"]
    (batch,) = make_loader(encoded, [[4, 2]], Collator(demo_tokenizer(), "demo-similarity"))
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [data["validation"]["label"][row] for row in (4, 2)]


def test_a_selection_is_batched_by_its_own_rows(encoded):
    chosen = encoded.select([9, 8, 7])
    (batch,) = make_loader(chosen, [[2, 0]], Collator(demo_tokenizer(), "demo-entailment"))
    ids = batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist()
    assert ids == encoded[7]["input_ids"]


LISTS = {"list": List, "large list": LargeList, "list of fixed size": partial(List, length=3)}


@pytest.mark.parametrize("number", ["int16", "uint32", "int64"])
@pytest.mark.parametrize("kind", LISTS.values(), ids=LISTS)
def test_tokens_and_several_labels_are_lists_of_any_of_arrow_s_types(kind, number):
    rows = {
        "input_ids": [[2, 7, 3], [2, 8, 3], [2, 9, 3], [2, 10, 3]],
        "attention_mask": [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]],
        "labels": [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 1, 1]],
    }
    features = Features({name: kind(Value(number)) for name in rows})
    halves = [Dataset.from_dict(rows, features).select(part) for part in (range(2), range(2, 4))]
    dataset = concatenate_datasets(halves)
    assert token_lengths(dataset).tolist() == [3] * 4
    collator = Collator(
        demo_tokenizer(), Task("topics", ("text",), tuple("abc"), ("f1",), "f1", {}, several=True)
    )
    (batch,) = make_loader(dataset, [[3, 0, 2]], collator)
    assert {name: column.tolist() for name, column in batch.items()} == {
        name: [column[row] for row in (3, 0, 2)] for name, column in rows.items()
    }


@pytest.mark.parametrize(
    "column",
    [["2 7 3"], [2], [[2.0, 7.0]], [["[CLS]"]], [[2, None]], [None]],
    ids=["text", "number", "fractions", "words", "a gap in a row", "no row"],
)
def test_other_columns_than_lists_of_whole_numbers_are_refused_in_one_line(column):
    dataset = Dataset.from_dict({"input_ids": column, "labels": [0]})
    for use in (token_lengths, lambda d: make_loader(d, [[0]], Collator(demo_tokenizer(), "rte"))):
        with pytest.raises(ConfigurationError, match=r"column input_ids of type .* list of whole numbers$"):
            use(dataset)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_are_the_same_at_any_number_of_workers_and_no_global_stream_moves(encoded, workers):
    batches = epoch_batches(token_lengths(encoded), 32, seed=1, epoch=0)
    collator = Collator(demo_tokenizer(), "demo-entailment")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    found = [batch["input_ids"] for batch in make_loader(encoded, batches, collator, workers)]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()
    assert len(found) == len(batches)
    for rows, ids in zip(batches, found, strict=True):
        assert torch.equal(ids, collator([encoded[row] for row in rows])["input_ids"])


def test_a_tokenizer_without_padding_is_refused():
    tokenizer = demo_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ConfigurationError, match=r"no padding token: set tokenizer\.pad_token"):
        Collator(tokenizer, "demo-entailment")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"seed": -1}, {"epoch": -1}])
def test_numbers_out_of_range_are_refused(wrong):
    right = {"batch_size": 2, "seed": 0, "epoch": 0}
    with pytest.raises(ConfigurationError, match="is out of range"):
        epoch_batches([1, 2], **{**right, **wrong})
