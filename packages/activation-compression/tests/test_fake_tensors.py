"""A forward pass on fake tensors stores the same bytes, row by row."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor
from activation_compression.group_choice import WAYS


def bert(**settings):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=300, **sizes, **settings)
    batch = {
        "input_ids": torch.zeros(8, 32, dtype=torch.long),
        "attention_mask": torch.ones(8, 1, 32, 32),
        "labels": torch.zeros(8, dtype=torch.long),
    }
    return BertForSequenceClassification(config), batch


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.1)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(8 * 16 * 16, 64), nn.Dropout(0.2), nn.Linear(64, 2)
        )

    def forward(self, images):
        return SimpleNamespace(loss=self.classifier(self.features(images)).square().mean())


def images():
    return Images(), {"images": torch.zeros(16, 3, 32, 32)}


def rows(make, level, fake, state=None):
    if fake:
        with FakeTensorMode():
            return rows(make, level, fake=False, state=state)
    torch.manual_seed(0)
    model, batch = make()
    model.train()
    compressor = ActivationCompressor(model, level)
    if state is not None:
        compressor.load_state_dict(state)
    with compressor:
        loss = model(**batch).loss
    loss.backward()
    return compressor.stats.rows


@pytest.mark.parametrize("level", ["L0", "lossless", "L1", "L1.2", "L2"])
@pytest.mark.parametrize(
    "make",
    [bert, images, lambda: bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)],
    ids=["bert", "images", "bert without dropout"],
)
def test_fakes_account_exactly(make, level):
    real = rows(make, level, fake=False)
    assert rows(make, level, fake=True) == real
    assert level == "L0" or any(row.stored_bytes < row.original_bytes for row in real)


def test_fakes_account_exactly_for_chosen_bits_and_groups():
    """Each way to group in each width, in turn, over the tensors of a measurement."""
    torch.manual_seed(0)
    model, batch = bert()
    model.train()
    compressor = ActivationCompressor(model, "L2")
    names = list(compressor.adapt(lambda: model(**batch).loss))
    choices = itertools.cycle(itertools.product((1, 2, 4, 8, 32), WAYS))
    widths, ways = zip(*itertools.islice(choices, len(names)), strict=True)
    state = compressor.state_dict()
    state |= {"widths": dict(zip(names, widths, strict=True)), "ways": dict(zip(names, ways, strict=True))}
    real = rows(bert, "L2", fake=False, state=state)
    assert rows(bert, "L2", fake=True, state=state) == real
    assert {row.bits for row in real} >= {1, 2, 4, 8, 32}


@pytest.mark.parametrize(
    ("layers", "level", "ratio"),
    [
        (2, "L1", 9.1),
        (2, "L1.1", 4.75),
        (2, "L1.2", 16.9),
        (12, "L1", 8.85),
        (12, "L1.1", 4.6),
        (12, "L1.2", 16.4),
    ],
)
def test_bytes_of_bert_base_with_every_value_stored(layers, level, ratio):
    """As published: hidden 768, batch 16, length 128, attention by sdpa, dropout 0.1, in training."""
    with FakeTensorMode():
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).train()
        batch = {
            "input_ids": torch.zeros(16, 128, dtype=torch.long),
            "attention_mask": torch.ones(16, 1, 128, 128),
            "labels": torch.zeros(16, dtype=torch.long),
        }
        with ActivationCompressor(model, level, derive=False) as compressor:
            loss = model(**batch).loss
        assert loss.requires_grad
        assert compressor.stats.ratio >= ratio
