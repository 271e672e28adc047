"""V is the unbiased variance of u_i = N·c_i, whatever rescales G afterwards."""

import pytest
import torch
from known_gradients import contribute, explicit_variance, standard_normal
from torch.utils.weak import TensorWeakRef

from finetune_common.errors import ConfigurationError
from noise_injection import AdaptiveGradientNoise

ETA = 1e8  # far above the gradient, so that G + noise - G keeps the noise's digits
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}


def injected_variance(contributions, dtype, rescale=lambda param, optimizer: None, scale_by_norm=True):
    """V·f² as read off the noise of one step, and the gradient that the step saw."""
    param = torch.nn.Parameter(torch.zeros(contributions[0].shape, dtype=dtype))
    optimizer = torch.optim.SGD([param], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, "microbatch", scale_by_norm, seed=3)
    for c in contributions:
        contribute(param, c)
    rescale(param, optimizer)
    gradient = param.grad.detach().clone()
    optimizer.step()
    norm = gradient.double().norm() if scale_by_norm else 1.0
    epsilon = standard_normal(param.detach(), seed=3).double()
    return ((param.grad.double() - gradient.double()) / (epsilon * norm)).square() / ETA, gradient


def draw(number, dtype, mean=0.0, size=500):
    torch.manual_seed(number)
    return [(torch.randn(size, dtype=torch.float64) + mean).to(dtype) / number for _ in range(number)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("mean", [0.0, 10.0], ids=["centred", "mean is ten times the spread"])
@pytest.mark.parametrize("number", [2, 3, 8])
def test_equals_the_variance_of_separately_computed_gradients(number, mean, dtype):
    contributions = draw(number, dtype, mean)
    variance, _ = injected_variance(contributions, dtype)
    expected = explicit_variance(contributions)
    floor = TOLERANCE[dtype] * 0.01  # elements whose micro-batches all but agree; the mean of V is 1
    torch.testing.assert_close(variance, expected, rtol=TOLERANCE[dtype], atol=floor)


def test_on_a_network_with_a_short_last_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)).double()
    rows, targets = torch.randn(11, 5, dtype=torch.float64), torch.randn(11, 1, dtype=torch.float64)
    pieces = list(zip(rows.split(4), targets.split(4), strict=True))  # 4, 4 and 3 rows
    weights = [len(x) / 11 for x, _ in pieces]

    def loss(piece, weight):
        return torch.nn.functional.mse_loss(model(piece[0]), piece[1]) * weight

    params = list(model.parameters())
    separate = [torch.autograd.grad(loss(p, w), params) for p, w in zip(pieces, weights, strict=True)]
    optimizer = torch.optim.SGD(params, lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, "microbatch", seed=3)
    torch.autograd.grad(loss(pieces[0], 1.0), params)  # no contribution: nothing is accumulated
    for piece, weight in zip(pieces, weights, strict=True):
        loss(piece, weight).backward()
    before = [p.grad.clone() for p in params]
    optimizer.step()
    first = params[0]
    noise = first.grad - before[0]
    expected = explicit_variance([g[0] for g in separate]).sqrt() * before[0].norm() * ETA**0.5
    epsilon = noise / expected
    torch.testing.assert_close(
        epsilon.float(), standard_normal(first.detach(), 3).float(), rtol=1e-5, atol=1e-5
    )


def clip(param, optimizer):
    torch.nn.utils.clip_grad_norm_([param], 0.1)


def unscale(param, optimizer):
    param.grad.mul_(2.0**-10)


def average(param, optimizer):
    param.grad.div_(4)


@pytest.mark.parametrize("rescale", [clip, unscale, average])
@pytest.mark.parametrize("scale_by_norm", [True, False])
def test_scales_with_the_square_of_what_rescaled_the_gradient(rescale, scale_by_norm):
    contributions = draw(4, torch.float64, mean=0.5)
    whole = torch.stack(contributions).sum(0)
    variance, gradient = injected_variance(contributions, torch.float64, rescale, scale_by_norm)
    factor = float(gradient.norm() / whole.norm())
    assert factor < 0.5
    torch.testing.assert_close(variance, explicit_variance(contributions) * factor**2, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True], ids=["scaler unscales", "optimizer unscales"])
@pytest.mark.parametrize("variance", ["microbatch", "running", "ema"])
def test_a_loss_scale_cancels(variance, fused):
    def train(scaler):
        param = torch.nn.Parameter(torch.zeros(500))
        optimizer = torch.optim.SGD([param], lr=1.0, fused=fused)
        AdaptiveGradientNoise(optimizer, 0.1, variance)
        torch.manual_seed(0)
        for _ in range(4):
            for _ in range(2):
                scaler.scale((param * torch.randn(500)).sum() / 2).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return param.detach()

    scaled = train(torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3))
    torch.testing.assert_close(scaled, train(torch.amp.GradScaler("cpu", enabled=False)))


def test_a_micro_batch_that_does_not_use_a_parameter_counts_as_zero():
    contributions = [*draw(2, torch.float64), torch.zeros(500, dtype=torch.float64)]
    used, always = (torch.nn.Parameter(torch.zeros(500, dtype=torch.float64)) for _ in range(2))
    optimizer = torch.optim.SGD([used, always], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, "microbatch", seed=3)
    for i, c in enumerate(contributions):
        loss = (always * 1.0).sum()
        (loss + (used * c).sum() if i < 2 else loss).backward()
    gradient = used.grad.clone()
    optimizer.step()
    noise = used.grad - gradient
    deviation = explicit_variance(contributions).sqrt() * gradient.norm() * ETA**0.5
    epsilon = standard_normal(used.detach(), 3)
    torch.testing.assert_close(noise, deviation * epsilon, rtol=1e-6, atol=1e-6)


def test_gradients_in_bfloat16_have_statistics_in_float32():
    contributions = draw(4, torch.bfloat16)
    variance, _ = injected_variance(contributions, torch.bfloat16)
    assert bool(
        ((variance / explicit_variance(contributions)) - 1).abs().median() < 0.02
    )  # noise is rounded too


def test_a_window_of_one_raises_at_first_and_is_counted_later():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([param], lr=0.0)
    noise = AdaptiveGradientNoise(optimizer, 1.0, "microbatch")
    contribute(param, torch.ones(3))
    with pytest.raises(ConfigurationError, match="this step had 1"):
        optimizer.step()
    contribute(param, torch.zeros(3))
    optimizer.step()
    assert not param.grad.equal(torch.ones(3))
    optimizer.zero_grad()
    contribute(param, torch.ones(3))
    optimizer.step()
    assert param.grad.equal(torch.ones(3))
    assert noise.skipped == 1


def test_gradients_not_made_by_backward_are_refused():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([param], lr=0.0)
    AdaptiveGradientNoise(optimizer)
    param.grad = torch.ones(3)
    with pytest.raises(ConfigurationError, match=r"saw no backward\(\) add to a gradient"):
        optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_skipped_step_ends_its_window(set_to_none):
    contributions = draw(2, torch.float64)
    param = torch.nn.Parameter(torch.zeros(500, dtype=torch.float64))
    idle = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))  # is in the skipped window alone
    optimizer = torch.optim.SGD([param, idle], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, seed=3)
    for _ in range(3):
        contribute(param, torch.ones(500, dtype=torch.float64))
        contribute(idle, torch.ones(3, dtype=torch.float64))
    optimizer.zero_grad(set_to_none=set_to_none)  # GradScaler met an overflow and did not step
    for c in contributions:
        contribute(param, c)
    gradient = param.grad.clone()
    optimizer.step()
    noise = param.grad - gradient
    deviation = explicit_variance(contributions).sqrt() * gradient.norm() * ETA**0.5
    torch.testing.assert_close(noise, deviation * standard_normal(param.detach(), 3), rtol=1e-6, atol=1e-6)
    assert idle.grad is None or not idle.grad.any()


@pytest.mark.parametrize("variance", ["microbatch", "running", "ema"])
def test_zero_grad_frees_the_gradients_of_a_step(variance):
    param = torch.nn.Parameter(torch.zeros(500))
    optimizer = torch.optim.SGD([param], lr=0.1)
    AdaptiveGradientNoise(optimizer, 1.0, variance)
    for _ in range(3):
        for c in draw(2, torch.float32):
            contribute(param, c)
        optimizer.step()
        assert param.grad is not None
        gradient = TensorWeakRef(param.grad)
        optimizer.zero_grad()
        assert gradient() is None


def test_each_backward_pass_is_a_micro_batch():
    """Two losses of one batch that are not added first count as two, whatever belongs together."""
    first, second = draw(2, torch.float64), draw(4, torch.float64)[2:]
    param = torch.nn.Parameter(torch.zeros(500, dtype=torch.float64))
    optimizer = torch.optim.SGD([param], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, seed=3)
    for one, other in zip(first, second, strict=True):
        contribute(param, one)
        contribute(param, other)
    gradient = param.grad.clone()
    optimizer.step()
    deviation = explicit_variance([*first, *second]).sqrt() * gradient.norm() * ETA**0.5
    noise = param.grad - gradient
    torch.testing.assert_close(noise, deviation * standard_normal(param.detach(), 3), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("joins", ["added", "unfrozen"])
def test_a_parameter_that_joins_within_a_window_is_watched_from_the_next_one_on(joins):
    param, late = (torch.nn.Parameter(torch.zeros(500, dtype=torch.float64)) for _ in range(2))
    late.requires_grad_(joins == "added")
    optimizer = torch.optim.SGD([param] if joins == "added" else [param, late], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, seed=3)
    changed = []
    for window in range(2):
        optimizer.zero_grad()
        for number, c in enumerate(draw(3, torch.float64)):
            if window == 0 and number == 1:
                late.requires_grad_()
                if joins == "added":
                    optimizer.add_param_group({"params": [late]})
            contribute(param, c)
            if window or number:
                contribute(late, c)
        before = late.grad.clone(), param.grad.clone()
        optimizer.step()
        changed.append((not torch.equal(late.grad, before[0]), not torch.equal(param.grad, before[1])))
    assert changed == [(False, True), (True, True)]


def test_scaling_between_micro_batches_and_contributions_that_cancel_end_no_window():
    contributions = draw(4, torch.float64)
    param = torch.nn.Parameter(torch.zeros(500, dtype=torch.float64))
    cancelling = torch.nn.Parameter(torch.zeros(500, dtype=torch.float64))
    optimizer = torch.optim.SGD([param, cancelling], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, seed=3)
    for i, c in enumerate(contributions):
        contribute(param, c)
        contribute(cancelling, torch.full((500,), (-1.0) ** i, dtype=torch.float64))
        for each in (param, cancelling):
            each.grad.mul_(1.0)  # what a communication hook does to a gradient
    gradient = param.grad.clone()
    optimizer.step()
    deviation = explicit_variance(contributions).sqrt() * gradient.norm() * ETA**0.5
    noise = param.grad - gradient
    torch.testing.assert_close(noise, deviation * standard_normal(param.detach(), 3), rtol=1e-6, atol=1e-6)


def test_elementwise_clipping_is_noticed():
    contributions = [c * torch.logspace(-3, 3, 500) for c in draw(2, torch.float32)]
    with pytest.warns(RuntimeWarning, match="element by element"):
        injected_variance(
            contributions, torch.float32, lambda p, _: torch.nn.utils.clip_grad_value_([p], 0.01)
        )


@pytest.mark.parametrize("shape", [(6, 4, 3, 2), (1,), ()])
def test_any_memory_layout(shape):
    param = torch.zeros(shape)
    if len(shape) == 4:
        param = param.to(memory_format=torch.channels_last)
    param = torch.nn.Parameter(param)
    optimizer = torch.optim.SGD([param], lr=0.0)
    AdaptiveGradientNoise(optimizer, ETA, seed=3)
    torch.manual_seed(1)
    contributions = [torch.randn(shape) for _ in range(2)]
    for c in contributions:
        contribute(param, c)
    gradient = param.grad.clone()
    optimizer.step()
    deviation = (explicit_variance(contributions).sqrt() * gradient.norm() * ETA**0.5).float()
    expected = deviation * standard_normal(param.detach().contiguous(), 3)
    torch.testing.assert_close(param.grad - gradient, expected, rtol=1e-3, atol=1e-2)


def test_an_empty_parameter_does_no_harm():
    empty, other = torch.nn.Parameter(torch.zeros(0)), torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([empty, other], lr=0.0)
    AdaptiveGradientNoise(optimizer, 1.0)
    for i in range(2):
        (empty.sum() + i * other.sum()).backward()
    optimizer.step()
    assert bool((other.grad != 1.0).all())
