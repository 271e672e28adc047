"""A forward pass on fake tensors stores the same bytes, row by row."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from activation_compression import ActivationCompressor


def bert(**settings):
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = BertConfig(vocab_size=300, **sizes, **settings)
    batch = {
        "input_ids": torch.zeros(8, 32, dtype=torch.long),
        "attention_mask": torch.ones(8, 1, 32, 32),
        "labels": torch.zeros(8, dtype=torch.long),
    }
    return BertForSequenceClassification(config), batch


def vit():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = ViTConfig(image_size=32, patch_size=8, **sizes)
    return ViTForImageClassification(config), {"pixel_values": torch.zeros(4, 3, 32, 32)}


def rows(make, level, fake):
    if fake:
        with FakeTensorMode():
            return rows(make, level, fake=False)
    torch.manual_seed(0)
    model, batch = make()
    model.train()
    compressor = ActivationCompressor(model, level)
    with compressor:
        output = model(**batch)
        loss = output.loss if output.loss is not None else output.logits.sum()
    loss.backward()
    return compressor.stats.rows


@pytest.mark.parametrize("level", ["L0", "L1", "L1.2"])
@pytest.mark.parametrize(
    "make",
    [bert, vit, lambda: bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)],
    ids=["bert", "vit", "bert without dropout"],
)
def test_fakes_account_exactly(make, level):
    real = rows(make, level, fake=False)
    assert rows(make, level, fake=True) == real
    assert level == "L0" or any(row.stored_bytes < row.original_bytes for row in real)
