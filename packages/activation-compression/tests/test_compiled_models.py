"""Compressed activations in models that Inductor compiled: one small encoder, compiled twice."""

import warnings

import pytest
import torch
from torch import nn

from activation_compression import compile_options
from finetune_common.measure import SavedTensorMeter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:torch.*"),
]


class Block(nn.Module):
    """Attention written out, as with dropout on a CPU, and a feed-forward part."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.Linear(width, 3 * width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(0.1)

    def forward(self, x):
        q, k, v = self.attention(x).chunk(3, -1)
        mixed = self.dropout((q @ k.mT / 8).softmax(-1)) @ v
        return self.norm(x + self.dropout(self.feed(mixed)))


class Models:
    """The model, compiled plainly and with L1."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(32, 64), Block(64), nn.Linear(64, 1)).train()
        self.options = compile_options("L1")
        self.plain = torch.compile(self.model, dynamic=True)
        self.packed = torch.compile(self.model, dynamic=True, options=self.options)

    def step(self, model, rows=24, length=48, seed=1):
        """Return the loss, the gradient, and the bytes that were saved."""
        x = torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(rows))
        torch.manual_seed(seed)
        self.model.zero_grad()
        with SavedTensorMeter(self.model) as meter:
            loss = model(x).square().mean()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in self.model.parameters()]), meter.bytes


@pytest.fixture(scope="module")
def models():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        made = Models()
        for rows, length in ((24, 48), (16, 30)):
            for model in (made.plain, made.packed):
                made.step(model, rows, length)
    return made


def test_the_loss_and_so_the_dropout_is_that_of_the_plain_compiled_model(models):
    for seed in (1, 2):
        assert models.step(models.packed, seed=seed)[0] == models.step(models.plain, seed=seed)[0]


def test_bytes_and_rows(models):
    plain, packed = (models.step(model)[2] for model in (models.plain, models.packed))
    assert plain > 6 * packed
    stored = models.options.stats.stored_bytes
    assert stored == pytest.approx(packed, rel=0.02)  # the meter leaves parameters out, and counts the loss
    names = {f"{row.module}:{row.operation}": row.bits for row in models.options.stats.rows}
    assert names["1.feed.0:addmm"] == 4
    assert names["1.norm:native_layer_norm"] == 4


def test_the_gradient_is_unbiased_and_new_in_every_step(models):
    """The error of the mean of 20 draws is that of one, by the root of 20."""
    exact = models.step(models.plain)[1]
    draws = torch.stack([models.step(models.packed)[1] for _ in range(20)])
    assert len({float(draw.double().sum()) for draw in draws}) == 20
    noise = draws.var(0).sum().sqrt()
    assert noise / exact.norm() < 0.3
    assert (draws.mean(0) - exact).norm() < 1.4 * noise / 20**0.5


def test_other_lengths_run_the_same_code(models, monkeypatch):
    calls, partitioner = [], type(models.options["custom_partitioner_fn"])
    monkeypatch.setattr(partitioner, "__call__", lambda *args, **kwargs: calls.append(1))
    for rows, length in ((12, 33), (8, 64), (31, 7)):
        exact, found = (models.step(model, rows, length) for model in (models.plain, models.packed))
        assert found[0] == pytest.approx(exact[0], rel=1e-5)
        assert (found[1] - exact[1]).norm() < 0.4 * exact[1].norm()
    assert not calls
