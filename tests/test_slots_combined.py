"""Methods of all four slots in one run: they compose, and a run cut off goes on to the same numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import cut_off_and_continued
from transformers import BertConfig, BertForSequenceClassification

from activation_compression import ActivationCompressor
from parameter_efficient import (
    BitFit,
    BottleneckAdapter,
    FFNTuning,
    Fusion,
    LoRA,
    PrefixTuning,
    adapt,
)

AGNI = {"name": "agni", "eta": 0.01}
TOGETHER: dict[str, dict[str, Any]] = {
    "lora, L1, microbatch noise, SAGE": {
        "adaptation": {"name": "lora", "rank": 2, "dropout": 0.1},
        "activation": {"name": "compress", "level": "L1"},
        "gradient": [AGNI],
        "optimizer": {"name": "sage-adamw", "lr": 0.01},
    },
    "adapter, L2, annealed noise, delayed clipping": {
        "adaptation": {"name": "bottleneck-adapter", "layers": [-1], "bottleneck": 2},
        "activation": {"name": "compress", "level": "L2", "interval": 2},
        "gradient": [{"name": "annealed-noise"}],
        "optimizer": {"name": "clipped-adam", "lr": 0.01, "delay": True, "initial_second_moment": 1e-5},
    },
    "prefix, recomputed and compressed, moments' noise, Adamax": {
        "adaptation": {"name": "prefix"},
        "activation": {"name": "compress+checkpoint", "level": "L1.2"},
        "gradient": [AGNI | {"variance": "ema"}],
        "optimizer": {"name": "sage-adamax", "lr": 0.01, "pattern": "prefix"},
    },
    "feed-forward, recomputed, running noise, AdaGrad-Norm": {
        "adaptation": {"name": "ffn-only", "layers": [0]},
        "activation": {"name": "checkpoint"},
        "gradient": [AGNI | {"variance": "running"}],
        "optimizer": {"name": "clipped-adagrad", "lr": 0.01, "norm": True, "initial_accumulator": 1.0},
    },
    "everything trains, L2.2, both noises, clipped elements": {
        "activation": {"name": "compress", "level": "L2.2", "interval": 2, "warmup": 1},
        "gradient": [AGNI, {"name": "annealed-noise"}],
        "optimizer": {"name": "clipped-adam", "lr": 0.01, "clip": "elementwise", "max_norm": 0.01},
    },
}


@pytest.mark.parametrize("slots", TOGETHER.values(), ids=TOGETHER)
def test_all_slots_together_resume_to_the_same_numbers(
    slots: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"max_train_samples": 48, "max_steps": 5, "batch_size": 4, "accumulate": 2}
    cut_off_and_continued(tmp_path, monkeypatch, **few, **slots)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


ADAPTATIONS = [
    BottleneckAdapter(layers=[1], bottleneck=2),
    LoRA(rank=2),
    PrefixTuning(),
    BitFit(),
    FFNTuning(layers=[0]),
    Fusion(adapter=BottleneckAdapter(parallel=True), lora=LoRA(rank=1)),
]


@pytest.mark.parametrize("config", ADAPTATIONS, ids=lambda config: type(config).__name__)
def test_an_adapted_model_trains_on_compressed_activations(config: Any) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 3}
    model = adapt(BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).train(), config)
    batch = {"input_ids": torch.arange(16 * 32).view(16, 32) % 100, "labels": torch.tensor([0, 1] * 8)}

    def gradient(level: str) -> tuple[torch.Tensor, int]:
        model.zero_grad()
        torch.manual_seed(1)
        compressor = ActivationCompressor(model, level)
        with compressor:
            loss = model(**batch).loss
        loss.backward()
        assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return torch.cat(grads), compressor.stats.stored_bytes

    model.zero_grad()
    torch.manual_seed(1)
    model(**batch).loss.backward()
    plain = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    unchanged, whole = gradient("L0")
    assert torch.equal(unchanged, plain)
    for level, limit in (("L1.1", 0.02), ("L1", 0.3)):
        rounded, stored = gradient(level)
        assert float((rounded - plain).norm() / plain.norm()) < limit
        assert stored < whole
