"""A complex gradient is two real ones: torch's optimizers take it so (`view_as_real`), and noise does."""

import pytest
import torch

from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise, GradientNoiseMonitor

NOISES = {
    "annealed": lambda optimizer: AnnealedGradientNoise(optimizer, 1.0),
    **{
        variance: lambda optimizer, variance=variance: AdaptiveGradientNoise(optimizer, 1.0, variance)
        for variance in ("microbatch", "running", "ema")
    },
}


def as_real(tensor):
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def trained(attach, optimizer_class, *, is_complex, dtype=torch.complex64):
    """Four steps of two micro-batches; the numbers are those of the real and imaginary parts."""
    torch.manual_seed(0)
    matrix, vector = torch.randn(4, 3, dtype=dtype), torch.randn(5, dtype=dtype.to_real())
    params = [torch.nn.Parameter(matrix if is_complex else torch.view_as_real(matrix))]
    params.append(torch.nn.Parameter(vector))
    optimizer = optimizer_class(params, lr=0.1)
    noise = attach(optimizer)
    monitor = GradientNoiseMonitor(optimizer)
    seen = []
    for step in range(1, 5):
        optimizer.zero_grad()
        for _ in range(2):
            for param in params:
                value = torch.randn_like(as_real(param.detach()))
                (as_real(param) * value).sum().backward()
        before = as_real(params[0].grad).clone()
        optimizer.step()
        moved = as_real(params[0].grad) - before
        seen += [moved, monitor.on_step(step)["effective_step_size"]]
    return seen, [as_real(param.detach()) for param in params], noise


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("attach", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_noise_of_a_complex_gradient_is_that_of_its_real_and_imaginary_parts(attach, optimizer_class, dtype):
    seen, params, noise = trained(attach, optimizer_class, is_complex=True, dtype=dtype)
    expected, real_params, _ = trained(attach, optimizer_class, is_complex=False, dtype=dtype)
    for ours, theirs in zip([*seen, *params], [*expected, *real_params], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert seen[-2].select(-1, 1).abs().min() > 0
    for moments in noise.state_dict().get("moments", {}).values():
        assert not any(tensor.is_complex() for tensor in moments.values())


@pytest.mark.parametrize("layout", [torch.conj, torch.t, lambda g: g.t().conj()], ids=["conj", "t", "both"])
def test_a_complex_gradient_that_is_a_view_keeps_its_numbers(layout):
    gradient = torch.randn(3, 3, dtype=torch.complex64)
    param = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))
    optimizer = torch.optim.SGD([param], lr=1.0)
    AnnealedGradientNoise(optimizer, 1e-8)
    param.grad = layout(gradient.clone())
    optimizer.step()
    difference = torch.view_as_real((-param.detach() - layout(gradient)).resolve_conj())
    assert difference.abs().min() > 0
    assert difference.abs().max() < 1e-3
