"""Every differentiable operation of torch's own collection, at 8 and at 4 bits."""

import warnings

import pytest
import torch
from torch import nn
from torch.testing._internal.common_methods_invocations import op_db

from activation_compression import ActivationCompressor, kernels

SAMPLES = 3
"""Of an operation, at most."""
LIMITS = {"L1.1": 0.05, "L1": 0.6}
DECLARED = {
    "corrcoef": "of two observations the correlation is ±1 whatever they are: the exact gradient is 0",
    "torch.ops.aten._safe_softmax.default": "saturated: the gradient is a small difference of probabilities",
    "masked.softmax": "as before",
    "masked.softmin": "as masked.softmax",
    "nn.functional.multi_head_attention_forward": "wide scores in 4 bits: as softmax written out",
}
"""Operation → why its error may be larger. At most ten."""

DIFFERENTIABLE = [
    op for op in op_db if op.supports_autograd and torch.float32 in op.supported_backward_dtypes("cpu")
]


def leaves(value):
    if isinstance(value, torch.Tensor):
        return [value] if value.is_floating_point() or value.is_complex() else []
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, (tuple, list)) else []


def gradient(op, sample, level, weights):
    """Return the gradient of a random weighing of the result by what requires it."""
    torch.manual_seed(0)
    inputs = [t for t in leaves([sample.input, *sample.args, *sample.kwargs.values()]) if t.requires_grad]
    compressor = ActivationCompressor(nn.Identity(), level, min_elements=2, seed=weights)
    with compressor:
        result = [t for t in leaves(op(sample.input, *sample.args, **sample.kwargs)) if t.requires_grad]
        generator = torch.Generator().manual_seed(weights)
        parts = [
            (t * torch.randn(t.shape, generator=generator)).abs().sum()
            if t.is_complex()
            else (t * torch.randn(t.shape, generator=generator)).sum()
            for t in result
        ]
        loss = torch.stack(parts).sum()
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return torch.cat(
        [
            torch.view_as_real(g.resolve_conj()).flatten() if g.is_complex() else g.flatten()
            for g in found
            if g is not None
        ]
    )


def errors(op, level):
    for sample in op.sample_inputs("cpu", torch.float32, requires_grad=True):
        try:
            exact = gradient(op, sample, "L0", 1)
        except (RuntimeError, IndexError, ValueError):
            continue  # the sample has no gradient
        if not exact.isfinite().all() or not exact.any():
            continue
        found = gradient(op, sample, level, 1)
        yield float((found - exact).norm() / exact.norm())


@pytest.mark.slow
@pytest.mark.parametrize("level", LIMITS)
@pytest.mark.parametrize("part", range(8))
def test_no_operation_loses_its_gradient(level, part, monkeypatch):
    """The largest error over an operation's samples; NaN is none below a limit."""
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    wrong = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for op in DIFFERENTIABLE[part::8]:
            name = f"{op.name}.{op.variant_test_name}".strip(".")
            for number, error in enumerate(errors(op, level)):
                if not error <= LIMITS[level]:
                    wrong[name] = max(error, wrong.get(name, 0.0))
                if number >= SAMPLES - 1:
                    break
    assert {name: error for name, error in wrong.items() if name not in DECLARED} == {}


def test_few_operations_are_declared():
    assert len(DECLARED) <= 10
