"""Rows taken out of training: a share of each class, or parts by name, whatever the order of the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_common.data import held_out, load_task
from finetune_common.data.splitting import stratified
from finetune_common.errors import ConfigurationError

ROWS = st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.integers(0, 2)), min_size=1, max_size=60)


@given(rows=ROWS, share=st.floats(0.01, 0.99))
def test_every_row_is_in_one_part_and_equal_texts_are_together(rows, share):
    texts, classes = [(text,) for text, _ in rows], [label for _, label in rows]
    first, second = stratified(texts, classes, share)
    assert sorted(first + second) == list(range(len(rows)))
    assert not {texts[row] for row in first} & {texts[row] for row in second}
    assert first


@given(order=st.permutations(range(40)))
def test_the_order_of_the_rows_does_not_matter(order):
    texts, classes = [(f"text {row}",) for row in range(40)], [row % 3 for row in range(40)]
    _, second = stratified(texts, classes, 0.25)
    _, turned = stratified([texts[row] for row in order], [classes[row] for row in order], 0.25)
    assert {texts[order[row]] for row in turned} == {texts[row] for row in second}


def test_each_class_has_its_share():
    texts = [(f"text {row}",) for row in range(1000)]
    classes = [0] * 900 + [1] * 98 + [2] * 2
    _, second = stratified(texts, classes, 0.1)
    assert [sum(classes[row] == label for row in second) for label in range(3)] == [90, 10, 1]
    assert stratified(texts, classes, 0.1, seed=1)[1] != second


def test_a_text_that_fills_the_file_does_not_fill_the_second_part():
    """Sixty rows, two thirds of them the same: a fifth of the others is too little, all of them too much."""
    for number in range(20):
        texts = [(f"the same {number}",)] * 40 + [(f"text {row}",) for row in range(20)]
        _, second = stratified(texts, [0] * 60, 0.2)
        assert len(second) == 12
        assert min(second) >= 40
    assert stratified([("a",)] * 5 + [("b",)] * 3, [0] * 8, 0.1)[1] == [5, 6, 7]
    assert stratified([("a",)] * 5, [0] * 5, 0.1)[1] == []


@given(rows=ROWS, choose=st.integers(1, 20), score=st.integers(1, 20))
def test_parts_have_their_rows_and_share_no_text(rows, choose, score):
    texts = [(text,) for text, _ in rows]
    try:
        left, parts = held_out(texts, {"choose": choose, "score": score})
    except ConfigurationError:
        assert choose + score >= len(rows) or len(set(texts)) < len(texts)
        return
    assert (len(parts["choose"]), len(parts["score"])) == (choose, score)
    assert left
    assert sorted(left + parts["choose"] + parts["score"]) == list(range(len(rows)))
    found = [{texts[row] for row in part} for part in (left, *parts.values())]
    assert sum(map(len, found)) == len(set(texts))


@given(order=st.permutations(range(40)))
def test_parts_do_not_depend_on_the_order_of_the_file(order):
    texts = [(f"text {row % 37}",) for row in range(40)]
    wanted = {"choose": 7, "score": 11}
    _, parts = held_out(texts, wanted)
    _, turned = held_out([texts[row] for row in order], wanted)
    assert {name: {order[row] for row in rows} for name, rows in turned.items()} == {
        name: set(rows) for name, rows in parts.items()
    }
    assert held_out(texts, wanted, seed=1)[1] != parts


@pytest.mark.real
def test_the_hold_out_of_the_benchmarks_is_disjoint_and_like_the_rest(glue_dir):
    """SST-2: 5,000 and 10,000 of 67,349 rows; 371 rows repeat a text, which stays on one side."""
    rows = load_task("sst2", data_dir=glue_dir, splits=["train"])["train"]
    texts, labels = [(text,) for text in rows["sentence"]], rows["label"]
    left, parts = held_out(texts, {"choose": 5000, "score": 10000})
    assert [len(part) for part in (left, *parts.values())] == [52_349, 5_000, 10_000]
    in_train, choose, score = ({texts[row] for row in part} for part in (left, *parts.values()))
    assert not in_train & choose
    assert not in_train & score
    assert not choose & score
    share = sum(labels) / len(labels)
    for part in parts.values():
        error = (share * (1 - share) / len(part)) ** 0.5
        assert abs(sum(labels[row] for row in part) / len(part) - share) < 4 * error
