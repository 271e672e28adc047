"""Measuring the precision of activations is no micro-batch: AGNI adds the same noise with and without it."""

from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor
from noise_injection import AdaptiveGradientNoise


def noisy_gradient(measured: bool) -> torch.Tensor:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    AdaptiveGradientNoise(optimizer, eta=1.0, seed=0)
    compressor = ActivationCompressor(model, "L2")
    rows: list[dict[str, Any]] = [
        {"input_ids": torch.arange(8 * 16).view(8, 16) % 97 + shift, "labels": torch.tensor([0, 1] * 4)}
        for shift in (0, 1)
    ]
    for batch in rows:
        (model(**batch).loss / 2).backward()
    if measured:
        compressor.adapt(lambda: model(**rows[0]).loss)
    optimizer.step()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_a_measurement_between_backward_and_step_changes_no_noise() -> None:
    assert torch.equal(noisy_gradient(measured=True), noisy_gradient(measured=False))
