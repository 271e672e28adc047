"""Every clip mode × delay × norm of the three optimizers meets the contracts of an element-wise optimizer.

The references are written from the equations in `clipped_adaptive.adam` and its neighbours (Algorithm 2 of
arXiv 2406.04443 and its coordinate-wise form), in float64 NumPy over whole lists of tensors.
"""

from itertools import product

import numpy as np
import pytest

from clipped_adaptive import ClippedAdaGrad, ClippedAdam, ClippedSGD
from finetune_common.testing import OptimizerCase, check_optimizer

LEVELS = {"none": 1.0, "global": 20.0, "layer": 20.0, "local": 1.5, "elementwise": 0.8}
COSTLY = {
    ("adam", "local", False, False),
    ("adam", "elementwise", True, False),
    ("adagrad", "global", True, True),
    ("sgd", "layer", False, False),
}


def clip(grads, mode, level):
    if mode == "none":
        return grads
    if mode == "elementwise":
        return [np.clip(g, -level, level) for g in grads]
    norms = [np.sqrt((g**2).sum()) for g in grads]
    if mode in ("global", "layer"):  # one group
        norms = [np.sqrt(sum(norm**2 for norm in norms))] * len(grads)
    return [g * min(1.0, level / norm) if norm else g for g, norm in zip(grads, norms, strict=True)]


def adam_reference(mode, delay, norm, lr, beta1=0.8, beta2=0.95, eps=1e-6, eta=2.0, start=0.0, decay=0.1):
    def step(params, grads, state, t):
        grads = clip(grads, mode, LEVELS[mode])
        m = state.setdefault("m", [np.zeros_like(p) for p in params])
        v = state.setdefault("v", [np.full_like(p, start) for p in params])
        m = [beta1 * a + (1 - beta1) * g for a, g in zip(m, grads, strict=True)]
        squares = [np.full_like(g, sum((h**2).sum() for h in grads)) if norm else g**2 for g in grads]
        new = [beta2 * a + (1 - beta2) * eta * s for a, s in zip(v, squares, strict=True)]
        used = [a if delay else b / (1 - beta2**t if start == 0 else 1) for a, b in zip(v, new, strict=True)]
        state["m"], state["v"] = m, new
        return [
            (1 - lr * decay) * p - lr * a / (1 - beta1**t) / (np.sqrt(u) + eps)
            for p, a, u in zip(params, m, used, strict=True)
        ]

    return step


def adagrad_reference(mode, delay, norm, lr, eps=1e-10, eta=2.0, start=0.0, decay=0.1):
    def step(params, grads, state, t):
        grads = clip(grads, mode, LEVELS[mode])
        old = state.get("b", [np.full_like(p, start) for p in params])
        squares = [np.full_like(g, sum((h**2).sum() for h in grads)) if norm else g**2 for g in grads]
        state["b"] = [b + eta * s for b, s in zip(old, squares, strict=True)]
        used = old if delay else state["b"]
        return [
            (1 - lr * decay) * p - lr * g / (np.sqrt(b) + eps)
            for p, g, b in zip(params, grads, used, strict=True)
        ]

    return step


def sgd_reference(mode, lr, momentum, nesterov, decay=0.1):
    def step(params, grads, state, t):
        grads = clip(grads, mode, LEVELS[mode])
        u = state.get("u", [np.zeros_like(p) for p in params])
        state["u"] = u = [momentum * a + g for a, g in zip(u, grads, strict=True)]
        directions = [g + momentum * a for g, a in zip(grads, u, strict=True)] if nesterov else u
        return [(1 - lr * decay) * p - lr * d for p, d in zip(params, directions, strict=True)]

    return step


def label(mode, delay, norm):
    return mode + "-delay" * delay + "-norm" * norm


def adam_case(mode, delay, norm):
    start = 0.5 if delay else 0.0
    settings = {
        "lr": 0.01,
        "betas": (0.8, 0.95),
        "eta": 2.0,
        "weight_decay": 0.1,
        "clip": mode,
        "max_norm": LEVELS[mode],
        "delay": delay,
        "norm": norm,
        "initial_second_moment": start,
    }
    return OptimizerCase(
        label(mode, delay, norm),
        settings,
        adam_reference(mode, delay, norm, lr=0.01, start=start),
        convergent={"lr": 0.02, "weight_decay": 0.0}
        | ({"initial_second_moment": 1e4} if delay and mode == "none" else {}),
        costly=("adam", mode, delay, norm) in COSTLY,
    )


def adagrad_case(mode, delay, norm):
    start = 0.5 if delay else 0.0
    settings = {
        "lr": 0.05,
        "eta": 2.0,
        "weight_decay": 0.1,
        "clip": mode,
        "max_norm": LEVELS[mode],
        "delay": delay,
        "norm": norm,
        "initial_accumulator": start,
    }
    return OptimizerCase(
        label(mode, delay, norm),
        settings,
        adagrad_reference(mode, delay, norm, lr=0.05, start=start),
        convergent={"lr": 0.2, "weight_decay": 0.0, "eta": 1.0, "max_norm": 10.0}
        | ({"lr": 0.5, "initial_accumulator": 1e4} if delay else {}),
        costly=("adagrad", mode, delay, norm) in COSTLY,
    )


def sgd_case(mode):
    nesterov = mode in ("local", "elementwise")
    settings = {
        "lr": 0.01,
        "momentum": 0.9,
        "nesterov": nesterov,
        "weight_decay": 0.1,
        "clip": mode,
        "max_norm": LEVELS[mode],
    }
    return OptimizerCase(
        mode,
        settings,
        sgd_reference(mode, 0.01, 0.9, nesterov),
        convergent={"lr": 1e-3, "weight_decay": 0.0, "max_norm": 10.0},
        costly=("sgd", mode, False, False) in COSTLY,
    )


MODES = list(product(LEVELS, (False, True), (False, True)))


@pytest.mark.parametrize("check", check_optimizer(ClippedAdam, [adam_case(*mode) for mode in MODES]))
def test_clipped_adam(check):
    check()


@pytest.mark.parametrize("check", check_optimizer(ClippedAdaGrad, [adagrad_case(*mode) for mode in MODES]))
def test_clipped_adagrad(check):
    check()


@pytest.mark.parametrize("check", check_optimizer(ClippedSGD, [sgd_case(mode) for mode in LEVELS]))
def test_clipped_sgd(check):
    check()
