"""Gradients that leave the model untouched, and sensitivities by rounding each group of tensors again."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from activation_compression.allocation import noise
from finetune_common.errors import ConfigurationError

__all__ = [
    "distance",
    "frozen",
    "gradient",
    "leaves",
    "like_groups",
    "preserved",
    "probed",
    "shares",
]


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Leave random states (torch on all devices, NumPy, Python), buffers and `.grad` as they were before."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
            for parameter, value in gradients:
                parameter.grad = value


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def leaves(loss: Tensor) -> list[Tensor]:
    """Return every leaf that a backward pass from a loss would reach, parameters of other models too."""
    leaves, open_nodes, seen = [], [cast(Any, loss.grad_fn)], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        open_nodes += [following for following, _ in node.next_functions]
    return leaves


@contextmanager
def frozen(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Keep a backward pass from reaching leaves: hooks on them would mistake it for a training pass."""
    for tensor in tensors:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(True)


def gradient(loss: Tensor, model: nn.Module, create_graph: bool = False) -> list[Tensor]:
    """Return the gradient of the parameters that the loss depends on."""
    try:
        gradients = torch.autograd.grad(loss, trained(model), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        if create_graph or "does not require grad" not in str(error):
            raise
        raise ConfigurationError("loss_fn returned a loss that depends on no parameter that trains") from None
    return [g for g in gradients if g is not None]


def distance(left: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the squared distance of two gradients."""
    return sum(float((a - b).double().square().sum()) for a, b in zip(left, other, strict=True))


def probed(
    gradients: Callable[[frozenset[str]], list[Tensor]], groups: Sequence[frozenset[str]], bits: int
) -> list[float]:
    """Return c of each group by brute force: ½ ‖g(r) - g(r')‖² / S(b), the group rounded anew in r'.

    Args:
        gradients: Group → the gradient in which the group is rounded with other random numbers.
        groups: Groups of tensors that are measured together.
        bits: The width in these passes.

    Source: Liu et al. 2022 (arXiv 2206.11357), algorithm 1.
    """
    base = gradients(frozenset())
    totals = []
    for group in groups:
        other = gradients(group)
        totals.append(distance(base, other) / 2 / noise(bits))
    return totals


def like_groups(elements: Mapping[str, int]) -> list[dict[str, int]]:
    """Join tensors whose names differ in the numbers of layers only.

    Examples:
        >>> like_groups({"layer.0.act:gelu:0": 8, "layer.1.act:gelu:0": 8, "pooler:tanh:0": 2})
        [{'layer.0.act:gelu:0': 8, 'layer.1.act:gelu:0': 8}, {'pooler:tanh:0': 2}]
    """
    groups: dict[str, dict[str, int]] = {}
    for key, count in elements.items():
        module, rest = key.split(":", 1)
        groups.setdefault(re.sub(r"\b\d+\b", "*", module) + rest, {})[key] = count
    return list(groups.values())


def shares(total: float, elements: Mapping[str, int]) -> dict[str, float]:
    """Split a group's sensitivity over its tensors by their elements."""
    all_elements = sum(elements.values())
    return {key: total * n / all_elements for key, n in elements.items()}
