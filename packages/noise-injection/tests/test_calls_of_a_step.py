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


def trained(make, shapes, dtype=torch.float32, steps=3, around=None):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    optimizer = torch.optim.SGD(params, lr=0.1, foreach=True)
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


@pytest.mark.parametrize(
    ("name", "most"), [("annealed", 40), ("microbatch", 40), ("running", 50), ("ema", 65)]
)
def test_a_step_of_393_tensors_is_few_calls(name, most, monkeypatch):
    monkeypatch.setattr(kernels, "COMPILE_FROM", 16)  # so that both kinds are there
    calls = Calls()

    def counted(step):
        calls.names.clear()
        with calls:
            step()

    shapes = [[(4, 4), (4,), (8, 4), (8,), (2,)][i % 5] for i in range(393)]
    with as_on_a_gpu(lambda: calls, lists):
        trained(NOISES[name], shapes, around=counted)
    assert not calls.waits
    assert len(calls.names) <= most, f"{len(calls.names)}: {calls.names}"
