"""Without clipping, delay and reweighting the optimizers are torch's, bit for bit (reference path, float32).

"Clip level ∞" and "no clipping" are the two ways to say so; `clip="global"` is `clip_grad_norm_` before the
step.
"""

import pytest
import torch
from torch import nn

from clipped_adaptive import ClippedAdaGrad, ClippedAdam, ClippedSGD
from clipped_adaptive.clips import CLIPS

NEVER = [(clip, torch.inf) for clip in CLIPS] + [("none", 1.0)]
PLAIN = {"foreach": False, "fused": False}


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 33), (129,), (), (3, 5, 7)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def train(optimizer, params, steps=25, before_step=None):
    for step in range(steps):
        generator = torch.Generator().manual_seed(step + 1)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator) * 10.0 ** (step % 5 - 2)
        if before_step is not None:
            before_step()
        optimizer.step()
    return [param.detach() for param in params]


def assert_same_training(ours, theirs):
    params, expected = parameters(), parameters()
    for a, b in zip(train(ours(params), params), train(theirs(expected), expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("clip", "level"), NEVER)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_is_adamw(clip, level, weight_decay):
    settings = {"lr": 0.01, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": weight_decay}
    assert_same_training(
        lambda params: ClippedAdam(params, clip=clip, max_norm=level, **settings, **PLAIN),
        lambda params: torch.optim.AdamW(params, **settings, **PLAIN),
    )


@pytest.mark.parametrize(("clip", "level"), NEVER)
def test_adam_without_weight_decay_is_adam(clip, level):
    settings = {"lr": 0.01, "eps": 1e-8}
    assert_same_training(
        lambda params: ClippedAdam(params, clip=clip, max_norm=level, **settings, **PLAIN),
        lambda params: torch.optim.Adam(params, **settings, **PLAIN),
    )


@pytest.mark.parametrize(("clip", "level"), NEVER)
@pytest.mark.parametrize("start", [0.0, 0.1])
def test_adagrad_is_adagrad(clip, level, start):
    assert_same_training(
        lambda params: ClippedAdaGrad(
            params, lr=0.05, clip=clip, max_norm=level, initial_accumulator=start, **PLAIN
        ),
        lambda params: torch.optim.Adagrad(params, lr=0.05, initial_accumulator_value=start, **PLAIN),
    )


@pytest.mark.parametrize(("clip", "level"), NEVER)
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_sgd(clip, level, momentum, nesterov):
    settings = {"lr": 0.001, "momentum": momentum, "nesterov": nesterov}
    assert_same_training(
        lambda params: ClippedSGD(params, clip=clip, max_norm=level, **settings, **PLAIN),
        lambda params: torch.optim.SGD(params, **settings, **PLAIN),
    )


def test_global_is_clip_grad_norm_before_the_step():
    params, expected = parameters(), parameters()
    train(ClippedAdam(params, lr=0.01, clip="global", max_norm=2.0), params)
    train(
        torch.optim.AdamW(expected, lr=0.01, eps=1e-6, weight_decay=0.0),
        expected,
        before_step=lambda: nn.utils.clip_grad_norm_(expected, 2.0),
    )
    for a, b in zip(params, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_local_is_clip_grad_norm_of_each_tensor():
    params, expected = parameters(), parameters()
    train(ClippedSGD(params, lr=0.01, clip="local", max_norm=2.0), params)

    def clip_each():
        for param in expected:
            nn.utils.clip_grad_norm_([param], 2.0)

    train(torch.optim.SGD(expected, lr=0.01), expected, before_step=clip_each)
    for a, b in zip(params, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_elementwise_is_clip_grad_value():
    params, expected = parameters(), parameters()
    train(ClippedSGD(params, lr=0.01, clip="elementwise", max_norm=0.3), params)
    train(
        torch.optim.SGD(expected, lr=0.01),
        expected,
        before_step=lambda: nn.utils.clip_grad_value_(expected, 0.3),
    )
    for a, b in zip(params, expected, strict=True):
        assert torch.equal(a, b)


def test_a_vanishing_gradient_is_left_alone():
    for clip in CLIPS:
        weight = nn.Parameter(torch.ones(3))
        optimizer = ClippedAdam([weight], lr=0.1, clip=clip)
        weight.grad = torch.zeros(3)
        optimizer.step()
        assert torch.equal(weight.detach(), torch.ones(3)), clip


def test_a_nan_gradient_is_not_hidden():
    for clip in CLIPS:
        weight = nn.Parameter(torch.ones(3))
        optimizer = ClippedSGD([weight], lr=0.1, clip=clip)
        weight.grad = torch.tensor([torch.nan, 1.0, 1.0])
        optimizer.step()
        assert weight.isnan()[0], clip


def test_one_second_moment_is_corrected_by_its_own_steps():
    """Two parameters take turns with gradient 1: v is corrected to 1 and m to 1, so each step is lr long."""
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = ClippedAdam(params, lr=0.1, clip="none", norm=True, eps=0.0)
    for step in range(6):
        params[step % 2].grad, params[1 - step % 2].grad = torch.ones(1), None
        optimizer.step()
    assert [param.item() for param in params] == pytest.approx([-0.3, -0.3], rel=1e-5)


def test_a_level_that_follows_the_step_counts_the_optimizers_steps():
    params, steps = [nn.Parameter(torch.zeros(1)) for _ in range(2)], []
    optimizer = ClippedSGD(params, lr=0.1, clip="local", max_norm=lambda step: steps.append(step) or 1.0)
    for step in range(4):
        params[step % 2].grad, params[1 - step % 2].grad = torch.ones(1), None
        optimizer.step()
    assert steps == [1, 2, 3, 4]
