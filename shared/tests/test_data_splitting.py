"""A share of the rows, with each class's share of it, whatever the order of the file."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_common.data.splitting import stratified

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
