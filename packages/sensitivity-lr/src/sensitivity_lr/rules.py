"""The update rules, as pure functions of tensors or lists of them: the specification of this package.

Notation: θ parameter, g gradient, t the step from 1, lr the learning rate, λ the weight decay. All
arithmetic is element-wise. A rule called without `sensitivity` is the plain optimizer, in the arithmetic of
`torch.optim`.
"""

from __future__ import annotations

from typing import Any

from finetune_common.optim.ops import (
    Scalar,
    Value,
    absolute,
    add_scaled,
    addcdiv,
    addcmul,
    divide,
    lerp,
    maximum,
    sign,
    square_root,
)

__all__ = ["adamax", "adamw", "rescale", "sage_factor", "sgd"]


def sage_factor(
    param: Value,
    grad: Value,
    sensitivity: Value,
    *,
    weight: Scalar,
    remainder: Scalar,
    s: Scalar,
    form: str,
    zeros_stay: bool = False,
) -> tuple[Value, Value]:
    """Return the factor of each coordinate's learning rate, and the new average sensitivity.

        I = |θ g|
        Î = β₃ Î + (1-β₃) I
        released: |I-Î| / (Î+s)        paper: (|I-Î|+s) / (Î+s)

    A parameter that begins at zero has I = Î = 0. Its first factor is 1 in both forms. With `zeros_stay` the
    released form gives it 0 for ever, as the released code does.

    |I-Î| is computed as β₃ |I-Î_old|, which is equal and loses no digits.

    Args:
        param: θ before the step.
        grad: g.
        sensitivity: Î of the previous step, ≥ 0, zero at first.
        weight: 1-β₃; (1-β₃)/(1-β₃ᵗ) makes Î the bias-corrected average.
        remainder: 1-weight.
        s: The small number, > 0.
        form: "paper" or "released".
        zeros_stay: Whether a coordinate with I = Î = 0 has the factor 0 in the released form.

    Returns:
        The factor, at least 0 and (released) at most max(1, β₃/(1-β₃)); the new Î.

    Examples:
        >>> import torch
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> sage_factor(one, one, zero, weight=0.25, remainder=0.75, s=1e-12, form="paper")
        (tensor([3.]), tensor([0.2500]))
        >>> sage_factor(zero, one, zero, weight=0.25, remainder=0.75, s=1e-12, form="paper")
        (tensor([1.]), tensor([0.]))
    """
    current = absolute(param * grad)
    variation = absolute(current - sensitivity)
    variation *= remainder
    sensitivity = add_scaled(sensitivity * remainder, current, weight)
    if form == "paper":
        variation += s
    elif not zeros_stay:
        variation += (sign(sensitivity) - 1.0) * -s  # add s where Î is 0
    variation /= sensitivity + s
    return variation, sensitivity


def adamw(
    param: Value,
    grad: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    sensitivity: Value | None = None,
    *,
    step_size: Scalar,
    beta1_complement: Scalar,
    beta2: Scalar,
    beta2_complement: Scalar,
    root: Scalar,
    eps: Scalar,
    keep: Scalar,
    legacy: bool,
    **sage: Any,
) -> tuple[Value, ...]:
    """AdamW, its step multiplied by the SAGE factor f.

        m = β₁ m + (1-β₁) g
        v = β₂ v + (1-β₂) g²
        θ = (1 - lr λ) θ - f · lr · m̂ / (√v̂ + ε),    m̂ = m/(1-β₁ᵗ),  v̂ = v/(1-β₂ᵗ)

    Legacy: the denominator is (√v + ε)/√(1-β₂ᵗ), and the decay acts on the updated θ.

    Args:
        param: θ.
        grad: g.
        exp_avg: m.
        exp_avg_sq: v.
        sensitivity: Î, or None for f = 1.
        step_size: lr/(1-β₁ᵗ); legacy: times √(1-β₂ᵗ).
        beta1_complement: 1-β₁.
        beta2: β₂.
        beta2_complement: 1-β₂.
        root: √(1-β₂ᵗ), a divisor; legacy does not use it.
        eps: ε.
        keep: 1 - lr λ.
        legacy: See above.
        **sage: The keyword arguments of `sage_factor`.

    Returns:
        θ, m, v and, with sensitivity, Î.
    """
    exp_avg = lerp(exp_avg, grad, beta1_complement)
    exp_avg_sq = addcmul(exp_avg_sq * beta2, grad, grad, beta2_complement)
    denominator = square_root(exp_avg_sq)
    if not legacy:
        denominator = divide(denominator, root)
    denominator += eps
    direction, state = exp_avg, (exp_avg, exp_avg_sq)
    if sensitivity is not None:
        factor, sensitivity = sage_factor(param, grad, sensitivity, **sage)
        factor *= exp_avg
        direction, state = factor, (*state, sensitivity)
    if legacy:
        return addcdiv(param, direction, denominator, -step_size) * keep, *state
    return addcdiv(param * keep, direction, denominator, -step_size), *state


def adamax(
    param: Value,
    grad: Value,
    exp_avg: Value,
    exp_inf: Value,
    sensitivity: Value | None = None,
    *,
    step_size: Scalar,
    beta1_complement: Scalar,
    beta2: Scalar,
    eps: Scalar,
    keep: Scalar,
    weight_decay: Scalar,
    legacy: bool,
    **sage: Any,
) -> tuple[Value, ...]:
    """Adamax with decoupled weight decay, its step multiplied by the SAGE factor f.

        m = β₁ m + (1-β₁) g
        u = max(β₂ u, |g| + ε)
        θ = (1 - lr λ) θ - f · lr/(1-β₁ᵗ) · m/u

    Legacy: θ = θ - f · lr · (m/(u+ε) + λ θ).

    Args:
        param: θ.
        grad: g.
        exp_avg: m.
        exp_inf: u.
        sensitivity: Î, or None for f = 1.
        step_size: lr/(1-β₁ᵗ); legacy: lr.
        beta1_complement: 1-β₁.
        beta2: β₂.
        eps: ε.
        keep: 1 - lr λ.
        weight_decay: λ.
        legacy: See above.
        **sage: The keyword arguments of `sage_factor`.

    Returns:
        θ, m, u and, with sensitivity, Î.
    """
    exp_avg = lerp(exp_avg, grad, beta1_complement)
    exp_inf = maximum(exp_inf * beta2, absolute(grad) + eps)
    direction = exp_avg / (exp_inf + eps) + param * weight_decay if legacy else exp_avg
    state = (exp_avg, exp_inf)
    if sensitivity is not None:
        factor, sensitivity = sage_factor(param, grad, sensitivity, **sage)
        factor *= direction
        direction, state = factor, (*state, sensitivity)
    if legacy:
        return add_scaled(param, direction, -step_size), *state
    return addcdiv(param * keep, direction, exp_inf, -step_size), *state


def sgd(
    param: Value,
    grad: Value,
    *state: Value,
    step_size: Scalar,
    momentum: Scalar,
    keep: Scalar,
    has_momentum: bool,
    nesterov: bool,
    sage_on: bool,
    **sage: Any,
) -> tuple[Value, ...]:
    """SGD with decoupled weight decay, its step multiplied by the SAGE factor f.

        b = μ b + g
        d = b, or g + μ b (Nesterov), or g (no momentum)
        θ = (1 - lr λ) θ - f · lr · d

    Args:
        param: θ.
        grad: g.
        *state: b with momentum, then Î with SAGE.
        step_size: -lr.
        momentum: μ.
        keep: 1 - lr λ.
        has_momentum: Whether the state has b.
        nesterov: Whether to use Nesterov's form.
        sage_on: Whether the state has Î; without it f = 1.
        **sage: The keyword arguments of `sage_factor`.

    Returns:
        θ and the state.
    """
    direction: Value = grad
    new_state: list[Value] = []
    if has_momentum:
        buffer = state[0] * momentum + grad
        direction = add_scaled(grad, buffer, momentum) if nesterov else buffer
        new_state.append(buffer)
    if sage_on:
        factor, sensitivity = sage_factor(param, grad, state[-1], **sage)
        factor *= direction
        direction = factor
        new_state.append(sensitivity)
    return add_scaled(param * keep, direction, step_size), *new_state


def rescale(param: Value, grad: Value, sensitivity: Value, previous: Value, **sage: Any) -> tuple[Value, ...]:
    """Scale the whole update of another optimizer by the SAGE factor f.

        θ = θ_old + f · (θ_new - θ_old)

    Args:
        param: θ_new, after the other optimizer's step.
        grad: g of that step.
        sensitivity: Î.
        previous: θ_old, before the step.
        **sage: The keyword arguments of `sage_factor`.

    Returns:
        θ and Î.
    """
    factor, sensitivity = sage_factor(previous, grad, sensitivity, **sage)
    factor *= param - previous
    factor += previous
    return factor, sensitivity
