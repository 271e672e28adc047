"""The compiled kernels are the rules, to rounding, and a step through them is a step through the rules."""

import pytest
import torch
from known_gradients import contribute
from torch._inductor.exc import TritonMissing

from finetune_common.compiled import function as compiling
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise, kernels

SIZE = kernels.COMPILE_FROM + 37


def step(make):
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = torch.optim.SGD([param], lr=0.0)
    make(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(2):
            contribute(param, torch.randn(SIZE) + 1)
        optimizer.step()
    return param.grad


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: AdaptiveGradientNoise(optimizer, 1e-4, "microbatch"),
        lambda optimizer: AdaptiveGradientNoise(optimizer, 1e-4, "running"),
    ],
    ids=["microbatch", "running"],
)
def test_compiled_equals_written(make, monkeypatch):
    compiled = step(make)
    assert all(kernels._compiled(kernel).usable for kernel in (kernels.add_microbatch, kernels.add_running))
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    torch.testing.assert_close(compiled, step(make), rtol=1e-4, atol=1e-5)


def test_blocks_continue_the_noise_where_the_last_one_ended(monkeypatch):
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    keys, scale = torch.tensor([1, 2, 3], dtype=torch.int32), torch.ones(1)
    whole, parts = torch.zeros(1000), torch.zeros(1000)
    kernels.run(kernels.add_plain, [whole], scale, keys)
    monkeypatch.setattr(kernels, "BLOCK", 64)
    kernels.run(kernels.add_plain, [parts], scale, keys)
    torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


def test_without_a_compiler_one_warning_and_the_same_noise(monkeypatch):
    def failing(function, **_):
        def fail(*_):
            raise TritonMissing(None)

        return fail

    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(compiling, "_no_compiler", False)
    kernels._compiled.cache_clear()
    with pytest.warns(RuntimeWarning, match="gradient noise runs uncompiled.*no working compiler") as caught:
        fallen_back = step(lambda optimizer: AnnealedGradientNoise(optimizer, 0.1))
    assert len(caught) == 1
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    torch.testing.assert_close(fallen_back, step(lambda optimizer: AnnealedGradientNoise(optimizer, 0.1)))
    kernels._compiled.cache_clear()


def test_sums_do_not_lose_digits():
    torch.manual_seed(0)
    values, others = (torch.rand(kernels.COMPILE_FROM - 5) for _ in range(2))
    a, b = values.double(), others.double()
    got = kernels.sums(values, others, torch.float32).double()
    torch.testing.assert_close(got, torch.stack([a @ a, a @ b, b @ b]), rtol=1e-6, atol=0)
