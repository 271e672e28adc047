"""What a GPU would wait for, counted on a CPU that is taken for one; and the copies that autocast makes."""

from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor, blocks
from activation_compression.keys import keys_of
from finetune_common.measure import SavedTensorMeter


class Waits(TorchDispatchMode):
    """Operations that read a value on the host, or make a device tensor from values of the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        reads = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags)
        if reads or name.startswith("lift_fresh"):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def gpu(monkeypatch):
    """Reading a value is taken to wait, and dropout keeps bools, as on a GPU."""
    monkeypatch.setattr(blocks, "reading_waits", lambda tensor: True)
    monkeypatch.setattr(
        F, "dropout", lambda x, p=0.5, training=True, inplace=False: torch.native_dropout(x, p, training)[0]
    )


def large_bert():
    """As deep as BERT-large, and narrow."""
    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=4,
        num_hidden_layers=24,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    batch = {"input_ids": torch.zeros(2, 24, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    return BertForSequenceClassification(config).train(), batch


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("level", ["lossless", "L1", "L1.2"])
def test_a_step_of_a_large_bert_makes_the_host_wait_no_more_than_a_plain_one(level):
    model, batch = large_bert()
    compressor = ActivationCompressor(model, level)
    compressor.store.draws.drawn = 1024 - 100  # the keys end within the pass, and new ones are made
    with Waits() as plain:
        model(**batch).loss.backward()
    for _ in range(2):  # the first pass makes two constants for each device
        with Waits() as waits:
            with compressor:
                loss = model(**batch).loss
            loss.backward()
    packed = [row for row in compressor.stats.rows if row.bits < 16]
    assert len(packed) > 100
    assert waits.seen == plain.seen


@pytest.mark.usefixtures("gpu")
def test_gates_make_no_tensors_from_values():
    layer = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.Hardtanh(), nn.Linear(64, 8))
    compressor = ActivationCompressor(layer, "L1")
    for _ in range(2):
        with Waits() as waits:
            with compressor:
                loss = layer(torch.zeros(40, 40)).square().mean()
            loss.backward()
    assert {row.bits for row in compressor.stats.rows} >= {1, 4}
    assert waits.seen == []


def test_keys_are_those_of_splitmix():
    """The published generator, in whole numbers of any size."""

    def mixed(value):
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) % 2**64
        return value ^ (value >> 31)

    for seed in (0, 1, 2**62 + 12345, 2**63 - 1):
        values = [mixed((seed * 0x9E3779B97F4A7C15 + number) % 2**64) for number in range(7, 57)]
        expected = [[value & 0x7FFFFFFF, value >> 33] for value in values]
        assert keys_of(seed, 7, 50, torch.device("cpu")).tolist() == expected


@contextmanager
def half():
    with torch.autocast("cpu", torch.bfloat16):
        yield


class Adapted(nn.Module):
    """Frozen linear maps and a convolution behind a small one that trains."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.frozen = nn.Sequential(nn.Linear(64, 160), nn.GELU(), nn.Linear(160, 64)).requires_grad_(False)
        self.conv = nn.Conv1d(64, 64, 3, padding=1).requires_grad_(False)

    def forward(self, x):
        y = self.frozen(self.first(x)) + x @ self.frozen[0].weight.T @ self.frozen[2].weight.T
        return self.conv(y.mT).float().square().mean()


@pytest.mark.parametrize("level", ["lossless", "L1"])
def test_copies_of_weights_that_autocast_makes_are_not_kept(level):
    torch.manual_seed(0)
    model, x = Adapted(), torch.randn(8, 32, 64)
    compressor = ActivationCompressor(model, level)
    with compressor, half():
        loss = model(x)
    loss.backward()
    copies = [
        row for row in compressor.stats.rows if row.shape in ((64, 64), (64, 160), (160, 64), (64, 64, 3))
    ]
    assert len(copies) >= 3
    assert all(row.stored_bytes == 0 for row in copies), copies
    found = model.first.weight.grad.clone()
    model.zero_grad()
    with half():
        model(x).backward()
    if level == "lossless":
        assert found.equal(model.first.weight.grad)
    else:
        assert (found - model.first.weight.grad).norm() < 0.2 * model.first.weight.grad.norm()


def test_an_input_of_the_weight_s_size_is_no_copy_of_it():
    """Which of the two was cast cannot be told: it is kept."""
    layer = nn.Linear(64, 64)
    layer.weight.requires_grad_(False)
    scale, x = nn.Parameter(torch.ones(64, 64)), torch.randn(64, 64)
    with ActivationCompressor(layer, "lossless"), half():
        loss = (layer(x) * scale).float().square().mean() + layer(x * scale).float().square().mean()
    loss.backward()
    found, scale.grad = scale.grad, None
    with half():
        ((layer(x) * scale).float().square().mean() + layer(x * scale).float().square().mean()).backward()
    assert found.equal(scale.grad)


def test_the_meter_does_not_count_copies_of_weights():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)), torch.randn(4, 64)
    model[1].requires_grad_(False)
    with SavedTensorMeter(model) as meter, half():
        loss = model(x).sum()
    loss.backward()
    assert meter.bytes <= 4 * 64 * 4 + 4 * 64 * 2 + 4 * 256 * 2
