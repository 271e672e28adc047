"""Which modules of a model are its blocks."""

import pytest
from torch import nn

from finetune_common.blocks import find_blocks


class Layer(nn.Sequential):
    """Four numbers to four numbers."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.Linear(8, 4))


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.ModuleList([Layer(), Layer()]), [Layer, Layer]),
        (nn.ModuleList([Layer()]), [nn.Linear, nn.Linear]),
        (nn.ModuleDict({"layers": nn.ModuleList([Layer(), Layer()]), "head": nn.Linear(4, 2)}), [Layer] * 2),
        (nn.ModuleList([nn.ModuleList([Layer(), Layer()]) for _ in range(2)]), [Layer] * 4),
        (nn.ModuleList([nn.Dropout(), nn.Dropout()]), []),
        (nn.Linear(4, 4), []),
    ],
)
def test_blocks_are_the_outermost_alike_modules_that_are_called(model, found):
    assert [type(block) for block in find_blocks(model)] == found
