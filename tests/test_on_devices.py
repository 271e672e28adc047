"""What runs on a CPU runs on CUDA: kernels, optimizers, noise, compression, adapters and a whole run.

`pytest --device cuda` where there is a GPU. Tolerances are those of an element's dtype: both devices compute
in float32, in another order.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""dtype → relative difference of two devices."""
SMALL, LARGE = (1, 255, 256, 1000), 70_000
"""Less than a group, a group, four with a tail; and enough to run compiled."""


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.filterwarnings("ignore:bf16 and fp16 are mixed")  # torch's compiler, of CPU code
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quantised_tensors_come_back_within_a_step(device: str, bits: int, dtype: torch.dtype) -> None:
    from activation_compression import dequantize, quantize

    for size in (*SMALL, *([LARGE] if bits == 4 else [])):
        x = numbers(size, dtype=dtype)
        here, there = quantize(x, bits, seed=5), quantize(x.to(device), bits, seed=5)
        step = here.content.step.float().max()
        back = dequantize(there)
        assert back.device.type == device
        rounding = CLOSE[dtype] * x.float().abs().max()  # of what comes back, to its dtype
        assert (back.cpu().float() - x.float()).abs().max() <= step + rounding
        different = (dequantize(here).float() - back.cpu().float()).abs() > rounding
        assert different.float().mean() < 0.001  # where u meets the boundary of two codes


@pytest.mark.parametrize("size", [*SMALL, LARGE])
def test_masks_come_back_exactly(device: str, size: int) -> None:
    from activation_compression import dequantize, quantize

    mask = (numbers(size) > 0).to(device)
    assert dequantize(quantize(mask)).equal(mask)


OPTIMIZERS = [
    ("sensitivity_lr", "SageAdamW", {}),
    ("sensitivity_lr", "SageSGD", {"momentum": 0.9}),
    ("clipped_adaptive", "ClippedAdam", {"clip": "local", "max_norm": 0.1}),
    ("clipped_adaptive", "ClippedAdam", {"clip": "global", "max_norm": 0.1}),
    ("clipped_adaptive", "ClippedAdaGrad", {"clip": "elementwise", "max_norm": 0.1}),
]


@pytest.mark.parametrize(
    "way", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=lambda w: str(w)
)
@pytest.mark.parametrize(("package", "name", "settings"), OPTIMIZERS, ids=lambda value: str(value))
def test_a_step_is_that_of_the_rule(
    device: str, package: str, name: str, settings: dict[str, Any], way: dict[str, bool]
) -> None:
    kind = getattr(pytest.importorskip(package), name)

    def trained(where: str, **how: bool) -> list[Tensor]:
        own = [nn.Parameter(numbers(*shape).to(where)) for shape in ((7,), (9, 5), (64, 33))]
        optimizer = kind(own, lr=1e-2, **settings, **how)
        for step in range(3):
            for parameter in own:
                parameter.grad = numbers(*parameter.shape).to(where) * (step + 1) * 0.1
            optimizer.step()
        return [parameter.detach().cpu() for parameter in own]

    for found, expected in zip(trained(device, **way), trained("cpu", foreach=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_noise_is_the_same_on_every_device_and_as_wide_as_it_is_said(device: str) -> None:
    noise_injection = pytest.importorskip("noise_injection")

    def injected(where: str) -> Tensor:
        parameter = nn.Parameter(torch.zeros(50_000, device=where))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        noise = noise_injection.AnnealedGradientNoise(optimizer, seed=7)
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        noise.remove()
        return parameter.detach().cpu()

    found = injected(device)
    torch.testing.assert_close(found, injected("cpu"), rtol=1e-3, atol=1e-5)
    assert abs(float(found.mean() / found.std())) < 5 / len(found) ** 0.5
    assert found.std() > 0


def bert(device: str) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2
    )
    batch = {"input_ids": torch.arange(5, 133).view(4, 32) % 100, "labels": torch.tensor([0, 1, 0, 1])}
    model = BertForSequenceClassification(config).to(device).eval()  # no dropout: two passes are alike
    return model, {name: value.to(device) for name, value in batch.items()}


def gradient(model: nn.Module, batch: dict[str, Tensor], level: str | None = None) -> Tensor:
    from activation_compression import ActivationCompressor

    model.zero_grad()
    if level is None:
        loss = model(**batch).loss
    else:
        with ActivationCompressor(model, level):
            loss = model(**batch).loss
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("level", "error"), [("lossless", 1e-6), ("L1.1", 0.02), ("L1", 0.4)])
def test_a_compressed_gradient_is_the_plain_one_within_the_level_s_error(
    device: str, level: str, error: float
) -> None:
    model, batch = bert(device)
    plain, found = gradient(model, batch), gradient(model, batch, level)
    assert (found - plain).norm() <= error * plain.norm()


@pytest.mark.cuda
@pytest.mark.parametrize("level", ["swap", "L4bit-swap"])
def test_what_waits_in_host_memory_comes_back(device: str, level: str) -> None:
    if device == "cpu":
        pytest.skip("moves tensors from a GPU")
    model, batch = bert(device)
    plain, found = gradient(model, batch), gradient(model, batch, level)
    assert (found - plain).norm() <= (0.4 if level != "swap" else 1e-6) * plain.norm()


@pytest.mark.parametrize("name", ["LoRA", "BottleneckAdapter", "PrefixTuning", "BitFit"])
def test_an_adapted_model_trains_what_is_new(device: str, name: str) -> None:
    parameter_efficient = pytest.importorskip("parameter_efficient")
    model, batch = bert("cpu")
    model = parameter_efficient.adapt(model, getattr(parameter_efficient, name)()).to(device)
    batch = {key: value.to(device) for key, value in batch.items()}
    model(**batch).loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and p.grad.device.type == device for p in trained)


def test_a_run_with_a_method_in_every_slot(device: str, tmp_path: Path) -> None:
    from glue_harness import parse_mapping, run

    settings = {
        "task": "demo-similarity",
        "model": "demo",
        "device": device,
        "max_steps": 4,
        "accumulate": 2,
        "batch_size": 8,
        "max_train_samples": 64,
        "output_dir": str(tmp_path / "run"),
        "adaptation": {"name": "lora"},
        "activation": {"name": "compress"},
        "gradient": [{"name": "agni"}],
        "optimizer": {"name": "sage-adamw", "lr": 1e-3},
    }
    result = run(parse_mapping(settings))
    assert result["hardware"]["device"] == device
    assert result["steps"] == 4
    assert result["peak_memory_bytes"] > 0
