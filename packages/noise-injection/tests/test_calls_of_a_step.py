"""Small tensors are joined, which changes no number; a step is few calls, whatever the number of tensors."""

import pytest
import torch

from finetune_common.testing.calls import Calls, as_on_a_gpu
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise, kernels, lists

NOISES = {
    "annealed": lambda optimizer: AnnealedGradientNoise(optimizer, 0.1),
    "microbatch": lambda optimizer: AdaptiveGradientNoise(optimizer, 1.0, "microbatch"),
    "running": lambda optimizer: AdaptiveGradientNoise(optimizer, 1.0, "running"),
    "ema": lambda optimizer: AdaptiveGradientNoise(optimizer, 1.0, "ema"),
}


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, foreach=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
}


def trained(make, shapes, dtype=torch.float32, steps=3, around=None, optimizer="sgd"):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = OPTIMIZERS[optimizer](params)
    make(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(2):
            sum((param * torch.randn(param.shape).to(dtype)).sum() for param in params).backward()
        if around is None:
            optimizer.step()
        else:
            around(optimizer.step)
    return params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NOISES)
def test_joined_tensors_receive_the_noise_of_single_ones(name, dtype, monkeypatch):
    shapes = [(5,), (4, 3), (0, 2), (), (300,)]
    joined = trained(NOISES[name], shapes, dtype)
    monkeypatch.setattr(lists, "LARGEST", 0)
    single = trained(NOISES[name], shapes, dtype)
    for a, b in zip(joined, single, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


MOST = 40


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_of_393_tensors_is_few_calls(name, optimizer, monkeypatch):
    monkeypatch.setattr(kernels, "COMPILE_FROM", 16)  # so that both kinds are there
    calls, counted = Calls(), []

    def before(*_):
        calls.names.clear()
        calls.__enter__()

    def after(*_):
        calls.__exit__(None, None, None)
        counted.append((list(calls.names), calls.waits, calls.from_host))

    def noise(optimizer):
        optimizer.register_step_pre_hook(before)
        NOISES[name](optimizer)
        optimizer.register_step_pre_hook(after)

    shapes = [[(4, 4), (4,), (8, 4), (8,), (2,)][i % 5] for i in range(393)]
    with as_on_a_gpu(lambda: calls):
        trained(noise, shapes, optimizer=optimizer)
    names, waits, from_host = counted[-1]
    assert "compiled" in names
    assert not waits
    assert not from_host
    assert len(names) <= MOST, f"{len(names)}: {names}"
