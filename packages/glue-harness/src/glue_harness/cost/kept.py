"""What the methods of a run keep from step to step, beside parameters and activations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from glue_harness.config.fields import RunConfig
from glue_harness.cost.live import LiveBytes, rounded
from glue_harness.run.assembly import Run, tell
from glue_harness.run.methods import build_methods

__all__ = ["Kept", "kept"]

STEPS = 2
"""Steps after which every method has made its state."""

MOST = 2**17
"""A method that reads values steps on real parameters of at most so many elements."""


@dataclass(frozen=True)
class Kept:
    """Bytes that stay from step to step.

    Attributes:
        optimizer: The optimizer's state.
        methods: What gradient methods and monitors keep, and what the optimizer keeps beside its state.
    """

    optimizer: int
    methods: int


def kept(config: RunConfig, model: nn.Module, rounding: int = 1) -> Kept:
    """Count what the optimizer, the gradient methods and the monitors of a run keep.

    They take two steps on the parameters that train, with their names, groups, shapes and dtypes, but without
    values (torch's meta device), so that nothing is allocated; what lies on the host, as a step's number,
    does not count. A method that has to read values steps on real parameters instead, whose longest axes are
    cut, and its bytes are scaled to the number of trained elements.

    Args:
        config: The run.
        model: Its adapted model after a backward pass: what has no gradient takes no step. Its trained
            parameters are replaced.
        rounding: Each storage is rounded up to a multiple of this.

    Raises:
        ConfigurationError: A method refuses such a run.
    """
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    elements = _elements(model)
    try:
        return _after_steps(config, model, moved, "meta", rounding)
    except (RuntimeError, TypeError):  # torch's when a value is read; of another cause they come again
        small = _after_steps(config, model, moved, "cpu", 1)
        scale = elements / _elements(model)
        return Kept(round(scale * small.optimizer), round(scale * small.methods))


def _elements(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _after_steps(
    config: RunConfig, model: nn.Module, moved: Collection[str], device: str, rounding: int
) -> Kept:
    run = Run(config, build_methods(config), model)
    most = 0
    with LiveBytes(rounding, device) as live, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about gradients that mean nothing
        _replace(model, device)
        fixed = live.now
        parameters = [parameter for name, parameter in model.named_parameters() if name in moved]
        try:
            run.prepare(config.accumulate)
            assert run.optimizer is not None
            for group in run.optimizer.param_groups:
                if device == "meta" and group.get("fused"):  # torch has no such kernels for it
                    group["fused"] = False
            parts = [run.optimizer, *run.handles.values()]
            for step in range(1, STEPS + 1):
                tell(parts, "before_forward", step)
                for _ in range(config.accumulate):
                    (_loss(parameters) / config.accumulate).backward()
                tell(parts, "after_backward", step, lambda: _loss(parameters))
                run.optimizer.step()
                tell(parts, "on_step", step)
                model.zero_grad()
                most = max(most, live.now - fixed)
        finally:
            run.detach()
        leaves = [leaf for state in run.optimizer.state.values() for leaf in tree_leaves(state)]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.device.type == device]
        state = sum(rounded(tensor.nbytes, rounding) for tensor in tensors)
    return Kept(state, max(most - state, 0))


def _loss(parameters: Iterable[Tensor]) -> Tensor:
    return torch.stack([parameter.float().square().sum() for parameter in parameters]).sum()


def _replace(model: nn.Module, device: str) -> None:
    """Give a model other parameters to train, small ones if they are real; shared ones stay shared."""
    new: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None and old.requires_grad:
                if old not in new:
                    shape = old.shape if device == "meta" else _cut(old.shape)
                    new[old] = nn.Parameter(torch.full(shape, 1e-3, dtype=old.dtype, device=device))
                setattr(module, name, new[old])


def _cut(shape: Sequence[int]) -> list[int]:
    """Halve the longest axis until a tensor is small enough."""
    axes = list(shape)
    while math.prod(axes) > MOST:
        longest = axes.index(max(axes))
        axes[longest] = -(-axes[longest] // 2)
    return axes
