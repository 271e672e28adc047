"""`running` is NumPy's variance of the recorded gradients; `ema` is max(0, v̂ - m̂²) from before the step."""

from functools import partial

import numpy as np
import pytest
import torch
from known_gradients import standard_normal

from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise

ETA = 1e8
SIZE = 300


def gradients(steps, dtype, mean=2.0):
    torch.manual_seed(0)
    return [torch.randn(SIZE, dtype=torch.float64).add(mean).to(dtype) for _ in range(steps)]


def noises(optimizer_class, variance, recorded, eta=ETA, **settings):
    """What is added to each of the recorded gradients, over ε·‖G‖."""
    param = torch.nn.Parameter(torch.zeros_like(recorded[0]))
    optimizer = optimizer_class([param], lr=0.0, **settings)
    AdaptiveGradientNoise(optimizer, eta, variance)
    probe = torch.nn.Parameter(torch.zeros_like(param))
    probing = torch.optim.SGD([probe], lr=0.0)
    AnnealedGradientNoise(probing, 1.0, 0.0)
    spreads, seen = [], []
    for gradient in recorded:
        param.grad, probe.grad = gradient.clone(), torch.zeros_like(probe)
        probing.step()
        optimizer.step()
        noise = param.grad.double() - gradient.double()
        spreads.append(noise / probe.grad.double() / gradient.double().norm() / eta**0.5)
        seen.append(param.grad.clone())
    return spreads, seen


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=str)
def test_running_is_numpys_variance(dtype, tolerance):
    recorded = gradients(6, dtype)
    spreads, _ = noises(torch.optim.SGD, "running", recorded)
    assert spreads[0].abs().max() == 0
    for t in range(2, 7):
        expected = np.var(torch.stack(recorded[:t]).double().numpy(), axis=0, ddof=1)
        np.testing.assert_allclose(
            spreads[t - 1].square().numpy(), expected, rtol=tolerance, atol=tolerance / 100
        )


def explicit_ema(seen, beta1=0.9, beta2=0.999):
    t = len(seen)
    seen = torch.stack([g.double() for g in seen])
    powers = torch.arange(t - 1, -1, -1, dtype=torch.float64)[:, None]
    m = ((1 - beta1) * beta1**powers * seen).sum(0) / (1 - beta1**t)
    v = ((1 - beta2) * beta2**powers * seen.square()).sum(0) / (1 - beta2**t)
    return (v - m.square()).clamp(min=0)


def test_ema_without_adam_sees_the_gradient_before_noise():
    recorded = gradients(6, torch.float64)
    spreads, _ = noises(torch.optim.SGD, "ema", recorded)
    assert spreads[0].abs().max() == 0
    for t in range(2, 6):
        torch.testing.assert_close(spreads[t].square(), explicit_ema(recorded[:t]), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam])
def test_ema_reads_adams_own_averages_which_see_the_noise(optimizer_class):
    recorded = gradients(6, torch.float64)
    spreads, seen = noises(optimizer_class, "ema", recorded, eta=1e-3, betas=(0.8, 0.99))
    assert spreads[0].abs().max() == 0
    assert not seen[-1].equal(recorded[-1])
    for t in range(2, 6):
        expected = explicit_ema(seen[:t], 0.8, 0.99)
        torch.testing.assert_close(spreads[t].square(), expected, rtol=1e-5, atol=1e-9)


def test_ema_on_adamw_keeps_no_state_of_its_own():
    param = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.AdamW([param])
    noise = AdaptiveGradientNoise(optimizer, 1.0, "ema")
    for gradient in gradients(3, torch.float32):
        param.grad = gradient.repeat(4)[:1000]
        optimizer.step()
    assert not noise.state_dict()["moments"]


@pytest.mark.parametrize(
    "other", [{"delay": True, "initial_second_moment": 1e-5}, {"eta": 4.0}, {"initial_second_moment": 1.0}]
)
def test_ema_takes_no_second_moment_that_is_something_else(other):
    """v₀ and a weight of the squares are no variance: the averages are then its own, from before noise."""
    optimizer = partial(pytest.importorskip("clipped_adaptive").ClippedAdam, clip="none", **other)
    recorded = gradients(6, torch.float64)
    spreads, _ = noises(optimizer, "ema", recorded)
    for t in range(1, 6):
        expected = explicit_ema(recorded[:t])
        torch.testing.assert_close(spreads[t].square(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("variance", ["running", "ema"])
def test_a_step_that_is_not_finite_leaves_no_trace(variance):
    recorded = gradients(5, torch.float64)
    broken = recorded[0].clone()
    broken[7] = torch.nan
    plain, _ = noises(torch.optim.SGD, variance, recorded[:2] + recorded[2:])
    with_gap, seen = noises(torch.optim.SGD, variance, [*recorded[:2], broken, *recorded[2:]])
    torch.testing.assert_close(seen[2], broken, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(with_gap[3].abs(), plain[2].abs(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(with_gap[4].abs(), plain[3].abs(), rtol=1e-9, atol=1e-12)


def test_first_noise_of_the_probe_is_the_documented_one():
    param = torch.zeros(10)
    assert standard_normal(param).equal(standard_normal(param))
    assert not standard_normal(param).equal(standard_normal(param, seed=1))


class Composite(torch.optim.Optimizer):
    """Momentum for matrices and Adam for vectors, in one optimizer; learning rates are 0."""

    def __init__(self, params, **settings):
        super().__init__(params, {"lr": 0.0, "betas": (0.8, 0.99), **settings})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if param.ndim >= 2:
                    old = state.get("momentum_buffer", torch.zeros_like(param))
                    state["momentum_buffer"] = 0.9 * old + param.grad
                    continue
                state["step"] = state.get("step", 0) + 1
                for name, beta, power in (("exp_avg", beta1, 1), ("exp_avg_sq", beta2, 2)):
                    old = state.get(name, torch.zeros_like(param))
                    state[name] = beta * old + (1 - beta) * param.grad**power


def test_ema_decides_for_each_parameter_also_for_those_that_come_later():
    """A matrix without averages and a vector with Adam's; two more have gradients from the third step on."""
    torch.manual_seed(0)
    shapes = [(20, 15), (300,), (20, 15), (300,)]
    params = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    optimizer = Composite(params)
    AdaptiveGradientNoise(optimizer, 1e-3, "ema")
    probes = [torch.nn.Parameter(torch.zeros_like(param)) for param in params]
    probing = torch.optim.SGD(probes, lr=0.0)
    AnnealedGradientNoise(probing, 1.0, 0.0)
    averaged = [[] for _ in params]
    for t in range(8):
        given = [torch.randn_like(param) + 2 for param in params]
        for i, (param, probe) in enumerate(zip(params, probes, strict=True)):
            param.grad = given[i].clone() if t >= 2 or i < 2 else None
            probe.grad = torch.zeros_like(probe)
        probing.step()
        optimizer.step()
        for i, (param, probe) in enumerate(zip(params, probes, strict=True)):
            if param.grad is None:
                continue
            spread = (param.grad - given[i]) / probe.grad / given[i].norm() / 1e-3**0.5
            betas = (0.8, 0.99) if param.ndim == 1 else (0.9, 0.999)
            expected = explicit_ema(averaged[i], *betas) if averaged[i] else torch.zeros(300).double()
            torch.testing.assert_close(spread.flatten().square(), expected, rtol=1e-5, atol=1e-9)
            averaged[i].append((param.grad.clone() if param.ndim == 1 else given[i]).flatten())


def keeps(**state):
    """An optimizer whose state has the given entries, made of the gradient."""

    class Keeps(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for param in group["params"]:
                    self.state[param] = {name: make(param.grad) for name, make in state.items()}

    return Keeps


@pytest.mark.parametrize(
    ("state", "settings"),
    [
        ({"exp_avg": torch.clone}, {"betas": (0.9, 0.99)}),  # Lion
        ({"exp_avg": torch.clone, "exp_avg_sq": torch.sum}, {"betas": (0.9, 0.99)}),  # one for the tensor
        ({"exp_avg": torch.clone, "exp_avg_sq": torch.square}, {}),  # Adafactor's vectors: no decay is known
        ({"exp_avg": torch.clone, "exp_avg_sq": torch.square}, {"betas": (0.98, 0.92, 0.99)}),  # Adan
        ({"exp_avg": torch.clone, "exp_avg_sq": lambda g: (g * 9).to(torch.uint8)}, {"betas": (0.9, 0.99)}),
    ],
)
def test_ema_takes_no_state_of_another_meaning(state, settings):
    state = {"step": lambda grad: torch.tensor(1.0), **state}

    def build(params, lr):
        return keeps(**state)([{"params": params, **settings}], lr=lr)

    recorded = gradients(5, torch.float64)
    spreads, _ = noises(build, "ema", recorded)
    for t in range(1, 5):
        torch.testing.assert_close(spreads[t].square(), explicit_ema(recorded[:t]), rtol=1e-6, atol=1e-9)
