"""Memory of a training step: measured, or predicted from fake tensors, which have shapes and no values."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.cost.cuda import ROUNDING, WORKSPACE, cuda_kernels
from glue_harness.cost.ends import full_rows
from glue_harness.cost.steps import Steps
from glue_harness.run.methods import build_methods

__all__ = [
    "Footprint",
    "LiveBytes",
    "imposed",
    "measured_peak",
    "optimizer_bytes",
    "predict",
    "running_bytes",
]


class LiveBytes(TorchDispatchMode):
    """Count the bytes of live storages, real or fake, and their peak.

    Args:
        rounding: Each storage is rounded up to a multiple of this, as by an allocator.

    Examples:
        >>> with LiveBytes() as live:
        ...     x = torch.zeros(8)
        ...     y = x + x.sum()
        ...     del x
        >>> live.now, live.peak  # y alone; before, also x and its sum
        (32, 68)
    """

    def __init__(self, rounding: int = 1) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._rounding = rounding
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            size = -(-storage.nbytes() // self._rounding) * self._rounding
            self._known[storage] = size
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step.

    Attributes:
        parameters: Parameters and buffers.
        gradients: Gradients of trained parameters.
        optimizer: The optimizer's state.
        activations: Tensors that the forward pass keeps for the backward pass, except parameters.
        peak: The peak of all of the above and temporary tensors.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def predict(config: RunConfig, device: str = "cpu", attention: str | None = None) -> Footprint:
    """Predict the memory of a training step without allocating it: forward and backward on fake tensors.

    For "cuda" no GPU is needed: the fake tensors are on the CPU, with CUDA's choices imposed on them
    (`glue_harness.cost.cuda`). The optimizer's step is assumed to need only its state.

    Args:
        config: Model, slots, batch size, length and precision. Rows are full.
        device: "cpu" or "cuda". On "cuda" every tensor is rounded up as by the allocator, and the peak
            includes the work space of cuBLAS.
        attention: One of `glue_harness.cost.cuda.ATTENTION`; by default the model's own.

    Returns:
        Bytes; exact for saved tensors, within a few percent for the peak (kernels' work space is not seen).

    Raises:
        ConfigurationError: FlashAttention in float32; a compiled model, whose compiler decides what is kept.
    """
    if config.compile:
        raise ConfigurationError(
            "--compile: what a compiled model keeps is measured, not predicted: use profile without "
            "--predict, or capacity --by measurement"
        )
    if attention == "flash" and config.precision == "fp32":
        raise ConfigurationError(
            "--attention flash needs half precision: use --precision bf16, or --attention sdpa"
        )
    state = optimizer_bytes(config)
    with imposed(device, attention) as live:
        steps = Steps(config, attention=attention)
        fixed = live.now
        loss, stored = steps.metered_forward()
        loss.backward()
        del loss
        if config.accumulate > 1:  # a later pass begins with gradients in place
            steps.forward().backward()
        gradients = sum(p.grad.nbytes for p in steps.model.parameters() if p.grad is not None)
        optimizer = round(state * steps.trained)
        peak = max(live.peak, fixed + gradients) + optimizer + (WORKSPACE if device == "cuda" else 0)
        return Footprint(steps.state_bytes()["parameters"], gradients, optimizer, stored, peak)


@contextmanager
def imposed(device: str, attention: str | None = None) -> Iterator[LiveBytes]:
    """Within this context tensors are fake, saved as on the device, and counted; see `predict`."""
    choices = cuda_kernels(attention or "sdpa") if device == "cuda" else nullcontext()
    moved = patch.object(torch.utils, "swap_tensors", _swapped)
    counted = LiveBytes(ROUNDING if device == "cuda" else 1)
    with choices, moved, FakeTensorMode(), full_rows(), counted as live:
        yield live


_swap = torch.utils.swap_tensors


def _swapped(current: Tensor, moved: Tensor) -> None:
    """Skip a module's move to the device it is on: torch cannot swap fake tensors."""
    if (current.dtype, current.device) != (moved.dtype, moved.device):
        _swap(current, moved)


def optimizer_bytes(config: RunConfig) -> float:
    """Return the bytes of optimizer state for each trained parameter, measured in two steps on a small layer.

    The layer is in a numbered list, like an encoder's layers. Patterns of names would not match it, so they
    are left out: all parameters count as chosen.
    """
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(256, 256)])})
    config = replace(config, optimizer={k: v for k, v in config.optimizer.items() if k != "pattern"})
    named = list(model.named_parameters())
    groups = [{"params": [pair], "weight_decay": 0.0} for pair in named]
    optimizer = build_methods(config).optimizer.build(model, groups)
    for _ in range(2):
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
    elements = sum(parameter.numel() for _, parameter in named)
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    ]
    return sum(tensor.nbytes for tensor in tensors) / elements


def measured_peak(step: Callable[[], object], device: str = "cpu") -> int:
    """Return the peak of bytes that a call allocates in addition, from the allocator's events.

    Args:
        step: What is measured.
        device: "cpu" or "cuda".
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    return max(running_bytes(step), default=0)


def running_bytes(call: Callable[[], object]) -> list[int]:
    """Return the additional bytes after each event of the CPU's allocator during a call."""
    # Torch's profiler writes lines about its own start and end into the terminal, amid tables.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        call()
    assert profiler.profiler is not None
    results: Any = profiler.profiler.kineto_results  # torch's stub lacks `nbytes`
    events = [event for event in results.events() if event.name() == "[memory]"]
    return list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
