"""What the released code computes is 0.0; restated here from its description, not from its text."""

import pytest
import torch

from noise_injection import AdaptiveGradientNoise
from noise_injection.released import ReleasedNoise


def released_noise(accumulate, eta=0.01):
    """Welford over the gradients collected since the last step, views of one buffer; then the noise."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50))
    collected = []
    for _ in range(accumulate):
        (param * torch.randn(50)).sum().backward()
        collected.append(param.grad.view(-1).detach())
    mean, deviations = torch.zeros(50), torch.zeros(50)
    for n, gradient in enumerate(collected, start=1):
        delta = gradient - mean
        mean = mean + delta / n
        deviations = deviations + delta * (gradient - mean)
    variance = deviations / max(len(collected) - 1, 1)
    return torch.randn(50) * (eta * variance).sqrt() * param.grad.norm()


def test_one_gradient_has_no_variance():
    assert released_noise(accumulate=1).abs().max() == 0.0


def test_aliases_of_the_accumulating_buffer_have_none_either():
    noise = released_noise(accumulate=4)
    assert noise.abs().max() == pytest.approx(0.0, abs=1e-6)


def test_ours_is_not_zero_for_the_same_gradients():
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(50))
    optimizer = torch.optim.SGD([param], lr=0.0)
    AdaptiveGradientNoise(optimizer, 0.01)
    for _ in range(4):
        (param * torch.randn(50)).sum().backward()
    before = param.grad.clone()
    optimizer.step()
    assert bool(((param.grad - before) != 0).all())


def test_the_stand_in_adds_nothing_and_moves_the_global_stream():
    param = torch.nn.Parameter(torch.ones(5))
    optimizer = torch.optim.SGD([param], lr=0.0)
    handle = ReleasedNoise(optimizer)
    param.grad = torch.arange(5.0)
    torch.manual_seed(0)
    optimizer.step()
    after_step = torch.rand(1)
    assert param.grad.equal(torch.arange(5.0))
    torch.manual_seed(0)
    torch.randn(5)
    assert after_step.equal(torch.rand(1))
    handle.remove()
    torch.manual_seed(0)
    optimizer.step()
    torch_first = torch.rand(1)
    torch.manual_seed(0)
    assert torch_first.equal(torch.rand(1))
