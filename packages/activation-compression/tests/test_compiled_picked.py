"""Where a loss reads one token of each sequence: what crosses, and that gradients stay what they were."""

import pytest
import torch
import torch.nn.functional as F
from graphs import compiled
from torch import nn

from activation_compression import compile_options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

READERS = {
    "first": lambda h, ends: h[:, 0],
    "last": lambda h, ends: h[:, -1],
    "its own": lambda h, ends: h[torch.arange(len(h)), ends],
    "found": lambda h, ends: h[torch.arange(len(h)), h[..., 0].argmax(-1)],
}
MIXERS = {
    "roll": lambda h: h + h.roll(1, 1),
    "sums": lambda h: h * h.cumsum(1).tanh(),
    "attention": lambda h: h + (h @ h.mT).softmax(-1) @ h,
    "features": lambda h: h * h.mT if h.shape[1] == h.shape[2] else h + h.mT.flatten(1).view_as(h).tanh(),
    "sequences": lambda h: h * h.mean(0),
}


class Tokens(nn.Module):
    """Layers that work token by token, what may mix them, and a head for one token."""

    def __init__(self, width, inner, read, mix=None):
        super().__init__()
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)
        self.read, self.mix = read, mix

    def forward(self, x, ends):
        h = F.relu(self.first(x))
        h = F.dropout(self.second(F.gelu(h) * h), 0.25)
        if self.mix is not None:
            h = self.mix(h)
        return self.head(self.read(self.norm(h), ends).tanh())


def gradients(forward, model, batch):
    torch.manual_seed(1)
    out = forward(*batch)
    return torch.autograd.grad(out.square().sum(), list(model.parameters()))


def batch_of(rows, length, width):
    torch.manual_seed(2)
    return torch.randn(rows, length, width), torch.randint(-length, length, (rows,))


def both(model, batch, level):
    """Return the gradients of the plain compiled model, those at a level, and the rows of what crossed."""
    torch.manual_seed(0)
    plain = gradients(compiled(model), model, batch)
    options = compile_options(level)
    found = gradients(compiled(model, options), model, batch)
    return plain, found, [row for row in options.stats.rows if row.operation != "input"]


@pytest.mark.parametrize("read", READERS)
def test_only_the_token_that_is_read_crosses_and_it_is_not_rounded(read):
    rows, length = 6, 40
    torch.manual_seed(0)
    model = Tokens(32, 64, READERS[read])
    plain, found, stored = both(model, batch_of(rows, length, 32), "L1.2")
    for expected, gradient in zip(plain, found, strict=True):
        torch.testing.assert_close(gradient, expected)
    large = [row for row in stored if row.original_bytes >= rows * length * 32]
    assert len(large) >= 3
    if read != "found":  # this one compares all tokens
        assert all(row.stored_bytes * length == row.original_bytes for row in large)


@pytest.mark.parametrize(
    ("mix", "read", "sizes"),
    [(mix, "its own", (2, 32, 64)) for mix in MIXERS] + [("features", "last", (3, 64, 64))],
)
def test_what_other_tokens_need_crosses_whole(mix, read, sizes):
    """All tokens are as many as features, or those of a sequence are."""
    torch.manual_seed(0)
    model = Tokens(sizes[2], 64, READERS[read], MIXERS[mix])
    plain, found, stored = both(model, batch_of(*sizes), "lossless")
    for expected, gradient in zip(plain, found, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert [row for row in stored if row.original_bytes == row.stored_bytes > 4096]


def test_a_second_use_by_the_loss_lets_all_tokens_cross():
    torch.manual_seed(0)
    model, batch = Tokens(32, 64, READERS["first"]), batch_of(6, 40, 32)

    def forward(x, ends):
        return torch.cat([model(x, ends).flatten(), model.second(F.gelu(model.first(x))).flatten()])

    options = compile_options("lossless")
    plain = gradients(compiled(forward), model, batch)
    found = gradients(compiled(forward, options), model, batch)
    for expected, gradient in zip(plain, found, strict=True):
        torch.testing.assert_close(gradient, expected)
    assert any(row.stored_bytes == row.original_bytes >= 4 * 6 * 40 * 32 for row in options.stats.rows)


def test_values_of_two_tokens_do_not_overflow_together():
    """exp(h - log Σ exp(h)) of one token's h and another's sum would be ∞."""
    torch.manual_seed(0)
    sums = lambda h: (1e4 * h - (1e4 * h).logsumexp(-1, keepdim=True)).exp()  # noqa: E731
    plain, found, _ = both(Tokens(32, 64, READERS["first"], sums), batch_of(6, 40, 32), "lossless")
    for expected, gradient in zip(plain, found, strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(gradient, expected)


def test_short_sequences_cross_whole():
    """One position in few takes more memory exactly than all of them in few bits."""
    model = Tokens(32, 64, READERS["first"])
    _, _, stored = both(model, batch_of(12, 16, 32), "L1")
    assert all(row.stored_bytes * 16 != row.original_bytes for row in stored)
