"""What a backward graph makes again of what is there anyway, so that it crosses no more."""

import pytest
import torch
import torch.nn.functional as F
from graphs import compiled, relative
from torch import nn

from activation_compression import compile_options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Attention(nn.Module):
    """Rows of a table, causal fused attention among those of one document, a projection."""

    def __init__(self):
        super().__init__()
        self.rows, self.scale = nn.Embedding(100, 64), nn.Parameter(torch.rand(64))
        self.parts, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, ids, document):
        x = self.rows(ids)
        q, k, v = (
            part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.parts(x * self.scale).chunk(3, -1)
        )
        own = (document[:, :, None] == document[:, None]) & torch.ones(
            ids.shape[1], ids.shape[1]
        ).tril().bool()
        mask = torch.where(own, 0.0, torch.finfo(torch.float32).min)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])
        return x.square() + self.out(mixed.transpose(1, 2).flatten(2))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Attention()


def batch_of(rows, length):
    drawn = torch.Generator().manual_seed(rows)
    ids = torch.randint(100, (rows, length), generator=drawn)
    return ids, torch.randint(3, (rows, length), generator=drawn)


def gradients(forward, model, batch):
    return torch.autograd.grad(forward(*batch).square().sum(), list(model.parameters()))


def rows_of(model, level, **settings):
    options = compile_options(level, **settings)
    found = gradients(compiled(model, options), model, batch_of(8, 64))
    return found, options.stats.rows


@pytest.mark.parametrize("derive", [True, False])
def test_without_rounding_nothing_changes_and_a_mask_takes_bits(model, derive):
    plain = gradients(compiled(model), model, batch_of(8, 64))
    found, rows = rows_of(model, "lossless", derive=derive)
    assert all(torch.equal(p, q) for p, q in zip(found, plain, strict=True))
    elements = 8 * 64 * 64
    masks = [row for row in rows if row.original_bytes in (elements, 4 * elements) and row.shape[-1] == 64]
    masks = [row for row in masks if row.dtype == "bool" or row.operation == "where"]
    assert all(row.stored_bytes == elements // 8 for row in masks)


def test_rows_of_an_embedding_follow_from_its_weight(model):
    _, rows = rows_of(model, "L1")
    _, stored = rows_of(model, "L1", derive=False)
    assert not [row for row in rows if row.operation == "embedding"]
    assert [row.bits for row in stored if row.operation == "embedding"]


def test_the_result_of_attention_crosses_in_no_shape(model):
    """Attention runs again from its rounded q, k and v; what the projection reads is a view of that."""
    plain = gradients(compiled(model), model, batch_of(8, 64))
    found, rows = rows_of(model, "L1.1")
    results = [row for row in rows if row.operation.startswith("scaled_dot_product")]
    assert results
    assert all(row.derived_from for row in results)
    assert all(relative(p, q) < 0.02 for p, q in zip(found, plain, strict=True))


@pytest.mark.parametrize("level", ["lossless", "L1.1"])
def test_lengths_may_change(model, level):
    packed = compiled(model, compile_options(level), dynamic=True)
    for rows, length in ((8, 64), (6, 40), (5, 33)):
        batch = batch_of(rows, length)
        found, expected = gradients(packed, model, batch), gradients(model, model, batch)
        assert all(relative(p, q) < 0.02 for p, q in zip(found, expected, strict=True))


def test_integers_made_of_integers_do_not_cross():
    """Which document a token is of, from where documents begin, as packed sequences have it."""
    weight = torch.randn(128, requires_grad=True)

    def scores(begins, x):
        document = torch.cumsum(begins, 1)
        near = document[:, :, None] == document[:, None]
        return (torch.sin(x * weight).unsqueeze(1) * near).sum(1).square().sum()

    begins = (torch.rand(16, 128, generator=torch.Generator().manual_seed(0)) < 0.1).long()
    x = torch.randn(16, 128)
    options = compile_options("lossless")
    [found] = torch.autograd.grad(compiled(scores, options)(begins, x), weight)
    [expected] = torch.autograd.grad(scores(begins, x), weight)
    torch.testing.assert_close(found, expected)
    assert not [row for row in options.stats.rows if row.operation == "cumsum"]
