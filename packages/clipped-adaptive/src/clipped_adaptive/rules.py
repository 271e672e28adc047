"""The update rules: pure functions of tensors (or lists of them), the specification of this package.

Notation: θ parameter, g gradient, ĝ the clipped gradient, t the step from 1, lr the learning rate, λ the
weight decay, η the reweighting of the second moment. All arithmetic is element-wise. Without clipping and
delay, and with η = 1, a rule is the plain optimizer, in the arithmetic of `torch.optim`.
"""

from __future__ import annotations

from finetune_common.optim.ops import Scalar, Value, add_scaled, addcmul, clamp, divide, lerp, square_root

__all__ = ["adagrad", "adagrad_norm", "adam", "adam_norm", "clipped", "sgd"]


def clipped(grad: Value, *, coefficient: Scalar = None, level: Scalar = None) -> Value:
    """Return the clipped gradient.

        by norm:     ĝ = c g,  c = min(1, L/‖·‖)
        by element:  ĝ = max(-L, min(g, L))
        neither:     ĝ = g

    Args:
        grad: g.
        coefficient: c, for clipping by norm; the caller computes the norm.
        level: L, for clipping by element.

    Examples:
        >>> import torch
        >>> clipped(torch.tensor([3.0, -0.5]), level=1.0)
        tensor([ 1.0000, -0.5000])
    """
    if level is not None:
        return clamp(grad, -level, level)
    return grad if coefficient is None else grad * coefficient


def adam(
    param: Value,
    grad: Value,
    exp_avg: Value,
    exp_avg_sq: Value,
    *,
    step_size: Scalar,
    beta1_complement: Scalar,
    beta2: Scalar,
    weight: Scalar,
    root: Scalar,
    eps: Scalar,
    keep: Scalar,
    delay: bool,
    **clip: Scalar,
) -> tuple[Value, ...]:
    """Clip-Adam, one second moment per coordinate.

        m = β₁ m + (1-β₁) ĝ
        v = β₂ v_old + (1-β₂) η ĝ²
        θ = (1 - lr λ) θ - lr · m̂ / (√v̂ + ε)        delay: with v_old in place of v

    Args:
        param: θ.
        grad: g.
        exp_avg: m.
        exp_avg_sq: v_old.
        step_size: lr, or lr/(1-β₁ᵗ) with bias correction.
        beta1_complement: 1-β₁.
        beta2: β₂.
        weight: (1-β₂) η.
        root: Divisor: 1, or √(1-β₂ᵗ) if v is bias-corrected.
        eps: ε.
        keep: 1 - lr λ.
        delay: See above.
        **clip: The keyword arguments of `clipped`.

    Returns:
        θ, m, v.
    """
    grad = clipped(grad, **clip)
    exp_avg = lerp(exp_avg, grad, beta1_complement)
    new_sq = addcmul(exp_avg_sq * beta2, grad * weight, grad)
    denominator = divide(square_root(exp_avg_sq if delay else new_sq), root)
    step = exp_avg * step_size / (denominator + eps)
    return param * keep - step, exp_avg, new_sq


def adam_norm(
    param: Value,
    grad: Value,
    exp_avg: Value,
    *,
    step_size: Scalar,
    beta1_complement: Scalar,
    denominator: Scalar,
    keep: Scalar,
    **clip: Scalar,
) -> tuple[Value, ...]:
    """Clip-Adam-Norm: one second moment for the whole optimizer.

        m = β₁ m + (1-β₁) ĝ
        θ = (1 - lr λ) θ - lr · m̂ / d,    d = √v̂ + ε of the scalar v

    Args:
        param: θ.
        grad: g.
        exp_avg: m.
        step_size: lr, or lr/(1-β₁ᵗ) with bias correction.
        beta1_complement: 1-β₁.
        denominator: d.
        keep: 1 - lr λ.
        **clip: The keyword arguments of `clipped`.

    Returns:
        θ, m.
    """
    exp_avg = lerp(exp_avg, clipped(grad, **clip), beta1_complement)
    return param * keep - exp_avg * step_size / denominator, exp_avg


def adagrad(
    param: Value,
    grad: Value,
    accumulator: Value,
    *,
    step_size: Scalar,
    weight: Scalar,
    eps: Scalar,
    keep: Scalar,
    delay: bool,
    **clip: Scalar,
) -> tuple[Value, ...]:
    """Clip-AdaGrad, one accumulator per coordinate.

        b = b_old + η ĝ²
        θ = (1 - lr λ) θ - lr · ĝ / (√b + ε)        delay: with b_old in place of b

    Args:
        param: θ.
        grad: g.
        accumulator: b_old.
        step_size: lr.
        weight: η.
        eps: ε.
        keep: 1 - lr λ.
        delay: See above.
        **clip: The keyword arguments of `clipped`.

    Returns:
        θ, b.

    Examples:
        >>> import torch
        >>> x, g, b = torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([9.0])
        >>> settings = dict(step_size=0.5, weight=1.0, eps=0.0, keep=1.0)
        >>> adagrad(x, g, b, delay=False, **settings)[0]  # 2 - 0.5·4/√(9+16)
        tensor([1.6000])
        >>> adagrad(x, g, b, delay=True, **settings)[0]  # 2 - 0.5·4/√9
        tensor([1.3333])
    """
    grad = clipped(grad, **clip)
    new = addcmul(accumulator, grad * weight, grad)
    step = grad * step_size / (square_root(accumulator if delay else new) + eps)
    return param * keep - step, new


def adagrad_norm(
    param: Value, grad: Value, *, step_size: Scalar, denominator: Scalar, keep: Scalar, **clip: Scalar
) -> tuple[Value, ...]:
    """Clip-AdaGrad-Norm: one accumulator for the whole optimizer.

        θ = (1 - lr λ) θ - lr · ĝ / d,    d = √b + ε of the scalar b

    Args:
        param: θ.
        grad: g.
        step_size: lr.
        denominator: d.
        keep: 1 - lr λ.
        **clip: The keyword arguments of `clipped`.

    Returns:
        θ.
    """
    return (param * keep - clipped(grad, **clip) * step_size / denominator,)


def sgd(
    param: Value,
    grad: Value,
    momentum_buffer: Value | None = None,
    *,
    step_size: Scalar,
    momentum: Scalar,
    keep: Scalar,
    nesterov: bool,
    **clip: Scalar,
) -> tuple[Value, ...]:
    """Clip-SGD.

        u = μ u + ĝ
        θ = (1 - lr λ) θ - lr · d,    d = u, or ĝ + μ u (Nesterov), or ĝ (no momentum)

    Args:
        param: θ.
        grad: g.
        momentum_buffer: u, or None without momentum.
        step_size: -lr.
        momentum: μ.
        keep: 1 - lr λ.
        nesterov: See above.
        **clip: The keyword arguments of `clipped`.

    Returns:
        θ and, with momentum, u.
    """
    grad = clipped(grad, **clip)
    if momentum_buffer is None:
        return (add_scaled(param * keep, grad, step_size),)
    buffer = momentum_buffer * momentum + grad
    direction = add_scaled(grad, buffer, momentum) if nesterov else buffer
    return add_scaled(param * keep, direction, step_size), buffer
