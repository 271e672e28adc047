"""Gradients that leave the model unchanged, and sensitivities by rounding groups of tensors again."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from activation_compression.allocation import noise
from activation_compression.nodes import Node, node_of
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
def preserved(model: nn.Module) -> Generator[None]:
    """Restore random states (torch on all devices, NumPy, Python), buffers and `.grad` afterwards."""
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices):  # pyright: ignore[reportUnknownMemberType]  # torch has no types
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
    """Return every leaf that a backward pass from a loss would reach, including other models' parameters."""
    leaves: list[Tensor] = []
    nodes, seen = [node_of(loss)], set[Node]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [before for before, _ in node.next_functions]
    return leaves


@contextmanager
def frozen(tensors: Sequence[Tensor]) -> Generator[None]:
    """Keep a backward pass from reaching leaves: hooks on them would mistake it for a training pass."""
    for tensor in tensors:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(True)


def gradient(loss: Tensor, model: nn.Module, create_graph: bool = False) -> list[Tensor]:
    """Return the gradients of the parameters that the loss depends on."""
    try:
        gradients = torch.autograd.grad(loss, trained(model), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        if create_graph or "does not require grad" not in str(error):
            raise
        raise ConfigurationError(
            "loss_fn returned a loss that depends on no parameter that trains: return the training loss"
        ) from None
    return [g for g in cast("tuple[Tensor | None, ...]", gradients) if g is not None]


def distance(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Return the squared distance of two gradients."""
    return sum(float((a - b).double().square().sum()) for a, b in zip(first, second, strict=True))


def probed(
    gradients: Callable[[frozenset[str]], list[Tensor]], groups: Sequence[frozenset[str]], bits: int
) -> list[float]:
    """Return c of each group by brute force: ½ ‖g(r) - g(r')‖² / S(b), the group rounded again in r'.

    Args:
        gradients: Group → the gradient with the group rounded by other random numbers.
        groups: Groups of tensors that are measured together.
        bits: The width in these passes.

    Source: Liu et al. 2022 (arXiv 2206.11357), algorithm 1.
    """
    base = gradients(frozenset())
    return [distance(base, gradients(group)) / 2 / noise(bits) for group in groups]


def like_groups(elements: Mapping[str, int]) -> list[dict[str, int]]:
    """Group tensors whose names differ only in the numbers of layers.

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
    """Split a group's sensitivity over its tensors in proportion to their elements."""
    all_elements = sum(elements.values())
    return {key: total * n / all_elements for key, n in elements.items()}
