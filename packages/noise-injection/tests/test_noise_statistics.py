"""The noise is Gaussian with mean 0 and variance η·V·‖G‖², independent between elements, steps and tensors.

Every bound is four standard errors of the statistic over n = 20,000 draws: 1/sqrt(n) for a standardised mean
or a correlation, sqrt(2/n) for a variance, sqrt(96/n) for a fourth moment.
"""

import pytest
import torch
from known_gradients import contribute, standard_normal

from finetune_common.compiled import normal
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise

N = 20_000
CLASSES = [(0.1, 1.0), (1.0, 0.1), (-2.0, 3.0), (0.5, 1e-3)]  # mean and spread of the contributions


def check_standard_normal(values):
    values = values.double()
    assert abs(values.mean()) < 4 / N**0.5
    assert abs(values.var() - 1) < 4 * (2 / N) ** 0.5
    assert abs((values**4).mean() - 3) < 4 * (96 / N) ** 0.5


def noise_of_one_step(eta=1e4, **settings):
    params = [torch.nn.Parameter(torch.zeros(N, dtype=torch.float64)) for _ in CLASSES]
    optimizer = torch.optim.SGD(params, lr=0.0)
    AdaptiveGradientNoise(optimizer, eta, **settings)
    for sign in (1, -1):
        for param, (mean, spread) in zip(params, CLASSES, strict=True):
            contribute(param, torch.full((N,), (mean + sign * spread) / 2, dtype=torch.float64))
    gradients = [param.grad.clone() for param in params]
    optimizer.step()
    return [param.grad - gradient for param, gradient in zip(params, gradients, strict=True)], gradients


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("scale_by_norm", [True, False])
def test_mean_and_variance_of_every_element_class(seed, scale_by_norm):
    noises, gradients = noise_of_one_step(seed=seed, scale_by_norm=scale_by_norm)
    for noise, gradient, (_, spread) in zip(noises, gradients, CLASSES, strict=True):
        norm = gradient.norm() if scale_by_norm else 1.0
        variance = 2 * spread**2  # of u_1 = m + s and u_2 = m - s, unbiased
        check_standard_normal(noise / (1e4 * variance) ** 0.5 / norm)


def test_elements_without_spread_receive_no_noise():
    param = torch.nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([param], lr=0.0)
    AdaptiveGradientNoise(optimizer, 1.0)
    contribute(param, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    contribute(param, torch.tensor([1.0, 2.0, 3.0, 5.0]))
    optimizer.step()
    assert param.grad[:3].tolist() == [2.0, 4.0, 6.0]
    assert param.grad[3] != 9.0


def test_normal_numbers_at_any_position():
    for start in (0, 10**6, 2**31 - 10**4):
        keys = torch.tensor([5, 6, 7], dtype=torch.int32) + torch.tensor([start, 0, 0]).to(torch.int32)
        check_standard_normal(normal(N, keys))


def test_all_keys_matter_and_streams_do_not_correlate():
    keys = torch.randint(-(2**31), 2**31, (6,), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    base = normal(N, keys[:3])
    others = [torch.cat([keys[:i], keys[3 + i : 4 + i], keys[i + 1 : 3]]) for i in range(3)]
    for other in (*others, keys[:3] + torch.tensor([2**20, 0, 0], dtype=torch.int32)):
        values = normal(N, other)
        for shift in (0, 1):
            correlation = (base[: N - shift] * values[shift:]).mean()
            assert abs(correlation) < 4 / N**0.5
    assert abs((base[1:] * base[:-1]).mean()) < 4 / N**0.5


def test_tail():
    values = normal(2_000_000, torch.tensor([9, 8, 7], dtype=torch.int32))
    for bound, probability in ((2.0, 4.5500e-2), (3.0, 2.6998e-3), (4.0, 6.334e-5)):
        expected = 2_000_000 * probability
        assert abs(int((values.abs() > bound).sum()) - expected) < 4 * expected**0.5


def annealed(steps, eta=4.0, gamma=0.55, params=2, seed=0):
    weights = [torch.nn.Parameter(torch.zeros(N)) for _ in range(params)]
    optimizer = torch.optim.SGD(weights, lr=0.0)
    AnnealedGradientNoise(optimizer, eta, gamma, seed=seed)
    drawn = []
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.zeros(N)
        optimizer.step()
        drawn.append([weight.grad.clone() for weight in weights])
    return drawn


def test_annealed_variance_follows_its_formula():
    for t, (first, second) in enumerate(annealed(3)):
        for values in (first, second):
            check_standard_normal(values / (4.0 / (1 + t) ** 0.55) ** 0.5)


def test_steps_tensors_and_seeds_draw_different_noise():
    streams = [values for step in annealed(2) + annealed(1, seed=1) for values in step]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
            assert abs(correlation) < 4 / N**0.5


def test_two_noises_with_one_seed_are_independent():
    param = torch.nn.Parameter(torch.zeros(N))
    optimizer = torch.optim.SGD([param], lr=0.0)
    AnnealedGradientNoise(optimizer, 1.0)
    AnnealedGradientNoise(optimizer, 1.0)
    param.grad = torch.zeros(N)
    optimizer.step()
    check_standard_normal(param.grad / 2**0.5)
    second = param.grad - standard_normal(param.detach())
    check_standard_normal(second)
