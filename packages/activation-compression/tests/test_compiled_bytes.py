"""How many times fewer bytes wait for backward than in the plain compiled model, of two shapes of models."""

import pytest
import torch
from graphs import compiled
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from activation_compression import compile_options
from finetune_common.measure import SavedTensorMeter

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SIZES = {"vocab_size": 1000, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert():
    return BertForSequenceClassification(BertConfig(**SIZES, intermediate_size=1024))


def llama():
    config = LlamaConfig(
        **SIZES, intermediate_size=688, num_key_value_heads=4, use_cache=False, pad_token_id=0
    )
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize(("make", "stored", "derived"), [(bert, 7.5, 11), (llama, 6.8, 14)])
def test_fewer_bytes_than_the_plain_compiled_model(make, stored, derived):
    """16 x 128; torch's own partition beside what is stored, and beside what is derived as well."""
    torch.manual_seed(0)
    model = make().train()
    batch = {"input_ids": torch.randint(1, 1000, (16, 128)), "labels": torch.zeros(16, dtype=torch.long)}

    def saved(options):
        compiled(model, options)(**batch)
        return options.stats.stored_bytes

    plain = compiled(model)
    plain(**batch)
    with SavedTensorMeter(model) as meter:
        plain(**batch)
    assert meter.bytes > stored * saved(compile_options("L1", derive=False))
    assert meter.bytes > derived * saved(compile_options("L1"))
