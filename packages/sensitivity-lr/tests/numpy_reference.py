"""SAGE written again in float64 NumPy, from the equations, for the tests to compare with."""

import numpy as np


def _each(step):
    """Lift a step on one array to lists of arrays with one state each."""

    def reference(params, grads, state, t):
        states = state.setdefault("arrays", [{} for _ in params])
        return [step(*arguments, t) for arguments in zip(params, grads, states, strict=True)]

    return reference


def factor(theta, g, state, t, beta3, form, s, bias_corrected, legacy=False):
    sensitivity = np.abs(theta * g)
    state["I"] = beta3 * state.get("I", 0.0) + (1 - beta3) * sensitivity
    average = state["I"]
    if form == "paper":
        return (np.abs(sensitivity - average) + s) / (average + s)
    if bias_corrected:
        average = average / (1 - beta3**t)
    released = np.abs(sensitivity - average) / (average + s)
    if bias_corrected and t == 1:
        released = np.zeros_like(theta)
    return released if legacy else np.where((sensitivity == 0) & (average == 0), 1.0, released)


def _small(form, eps, sensitivity_eps):
    if sensitivity_eps is not None:
        return sensitivity_eps
    return eps**2 if form == "released" else 1e-12


def adamw(
    lr, betas=(0.9, 0.999), beta3=0.75, eps=1e-6, weight_decay=0.01, form="paper", sensitivity_eps=None,
    legacy=False, sage=True,
):  # fmt: skip
    beta1, beta2 = betas
    s = _small(form, eps, sensitivity_eps)

    def step(theta, g, state, t):
        state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
        f = factor(theta, g, state, t, beta3, form, s, True, legacy) if sage else 1.0
        m_hat, correction = state["m"] / (1 - beta1**t), np.sqrt(1 - beta2**t)
        if legacy:
            theta = theta - f * lr * m_hat * correction / (np.sqrt(state["v"]) + eps)
            return theta - lr * weight_decay * theta
        return theta - lr * weight_decay * theta - f * lr * m_hat / (np.sqrt(state["v"]) / correction + eps)

    return _each(step)


def adamax(
    lr, betas=(0.9, 0.999), beta3=0.75, eps=1e-6, weight_decay=0.01, form="paper", sensitivity_eps=None,
    legacy=False, sage=True,
):  # fmt: skip
    beta1, beta2 = betas
    s = _small(form, eps, sensitivity_eps)

    def step(theta, g, state, t):
        state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
        state["u"] = np.maximum(beta2 * state.get("u", 0.0), np.abs(g) + eps)
        f = factor(theta, g, state, t, beta3, form, s, False, legacy) if sage else 1.0
        if legacy:
            return theta - lr * f * (state["m"] / (state["u"] + eps) + weight_decay * theta)
        return theta - lr * weight_decay * theta - f * lr / (1 - beta1**t) * state["m"] / state["u"]

    return _each(step)


def sgd(
    lr,
    momentum=0.0,
    beta3=0.75,
    weight_decay=0.0,
    nesterov=False,
    form="paper",
    sensitivity_eps=None,
    sage=True,
):
    s = 1e-12 if sensitivity_eps is None else sensitivity_eps

    def step(theta, g, state, t):
        state["b"] = momentum * state.get("b", 0.0) + g
        d = g + momentum * state["b"] if nesterov else state["b"]
        f = factor(theta, g, state, t, beta3, form, s, bias_corrected=False) if sage else 1.0
        return theta - lr * weight_decay * theta - f * lr * d

    return _each(step)
