"""Parameters, gradients and comparisons that the contracts share."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune_common.aliases import StateDict
from finetune_common.optim.norms import euclidean_norm
from finetune_common.testing.optimizers.case import Factory

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "SHAPES",
    "TOLERANCE",
    "assert_close",
    "assert_equal",
    "gradients",
    "pair",
    "parameters",
    "saved_and_loaded",
    "step",
    "tensors",
    "torch_may_deprecate_itself",
    "train",
    "trained",
]

SHAPES = [(4, 3), (5,), (1,), (), (0, 2), (3, 7), (20_001,)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""Largest ‖a-b‖/‖b‖ between two ways of running ten steps, by the parameters' dtype."""


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    """Return one parameter of each of `SHAPES`; one of them is transposed in memory."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    params[5] = params[5].t()
    return [nn.Parameter(param) for param in params]


def gradients(params: Sequence[Tensor], step: int) -> list[Tensor]:
    """Return gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in params]


def pair() -> list[nn.Parameter]:
    """Return two small parameters."""
    return [nn.Parameter(torch.tensor([1.0, 2.0, -3.0])), nn.Parameter(torch.tensor([0.5, -0.5, 2.0]))]


def step(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], values: Sequence[float]) -> None:
    """Take a step with gradients that are one number everywhere."""
    for param, value in zip(params, values, strict=True):
        param.grad = torch.full_like(param, value)
    optimizer.step()


def train(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: Sequence[int]) -> None:
    """Take the given steps."""
    for step in steps:
        for param, grad in zip(params, gradients(params, step), strict=True):
            param.grad = grad
        optimizer.step()


def trained(
    cls: Factory, steps: int, dtype: torch.dtype = torch.float32, **settings: object
) -> list[nn.Parameter]:
    """Return parameters after some steps of a new optimizer."""
    params = parameters(dtype)
    train(cls(params, **settings), params, range(steps))
    return params


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor | np.ndarray], tolerance: float) -> None:
    """Fail if ‖a-b‖/‖b‖ is above the tolerance or a value is not finite."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        a, b = a.detach().double(), torch.as_tensor(b).detach().double()
        assert torch.isfinite(a).all(), f"tensor {i} is not finite"
        error = euclidean_norm(a - b) / euclidean_norm(b).clamp(min=1e-30)
        assert error <= tolerance, f"tensor {i} of shape {tuple(a.shape)}: {error:.2e} > {tolerance:.2e}"


def assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Fail if a bit differs."""
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {i} of shape {tuple(a.shape)} differs"


def tensors(state: StateDict) -> Iterator[tuple[int, str, Tensor]]:
    """Yield parameter, name and value of every tensor of an optimizer's state_dict."""
    for key, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                yield key, name, value


def saved_and_loaded(state: StateDict) -> StateDict:
    """Save to a file, load with `weights_only=True`, and return the result."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@contextmanager
def torch_may_deprecate_itself() -> Generator[None, None, None]:
    """Let torch's own DeprecationWarnings pass while it compiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
