"""Memory of a training step: measured, or predicted from fake tensors, which have shapes and no values."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.cost.cuda import ROUNDING, WORKSPACE, cuda_kernels
from glue_harness.cost.ends import full_rows
from glue_harness.cost.kept import kept
from glue_harness.cost.live import LiveBytes
from glue_harness.cost.steps import Steps

__all__ = [
    "Footprint",
    "imposed",
    "measured_growth",
    "measured_peak",
    "predict",
    "running_bytes",
    "warm_up",
]


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step.

    Attributes:
        parameters: Parameters and buffers.
        gradients: Gradients of trained parameters.
        optimizer: The optimizer's state.
        methods: What gradient methods and monitors keep from step to step.
        activations: Tensors that the forward pass keeps for the backward pass, except parameters.
        peak: The peak of all of the above and temporary tensors.
    """

    parameters: int
    gradients: int
    optimizer: int
    methods: int
    activations: int
    peak: int


def predict(config: RunConfig, device: str = "cpu", attention: str | None = None) -> Footprint:
    """Predict the memory of a training step without allocating it: forward and backward on fake tensors.

    For "cuda" no GPU is needed: the fake tensors are on the CPU, with CUDA's choices imposed on them
    (`glue_harness.cost.cuda`). What the methods keep from step to step is counted by two steps of theirs
    (`glue_harness.cost.kept`); the optimizer's step is assumed to need nothing more.

    Args:
        config: Model, slots, batch size, length and precision. Rows are full.
        device: "cpu" or "cuda". On "cuda" every tensor is rounded up as by the allocator, and the peak
            includes the work space of cuBLAS.
        attention: One of `glue_harness.cost.cuda.ATTENTION`; by default the model's own.

    Returns:
        Bytes; exact for saved tensors, within a few percent for the peak (kernels' work space is not seen).

    Raises:
        ConfigurationError: FlashAttention in float32; a compiled model, whose compiler decides what is kept;
            a run that a method refuses.
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
    with imposed(device, attention) as live:
        steps = Steps(config, attention=attention)
        fixed = live.peak = live.now  # what building took, an adaptation's probes for instance, is gone
        loss, stored = steps.metered_forward()
        loss.backward()
        del loss
        if config.accumulate > 1:  # a later pass begins with gradients in place
            steps.forward().backward()
        gradients = sum(p.grad.nbytes for p in steps.model.parameters() if p.grad is not None)
        parameters = steps.state_bytes()["parameters"]
        passes = max(live.peak, fixed + gradients)
    more = kept(config, steps.model, ROUNDING if device == "cuda" else 1)
    peak = passes + more.optimizer + more.methods + (WORKSPACE if device == "cuda" else 0)
    return Footprint(parameters, gradients, more.optimizer, more.methods, stored, peak)


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


def measured_growth(call: Callable[[], object], device: str = "cpu") -> int:
    """Return the bytes that are allocated in addition after a call; see `measured_peak`."""

    def collected() -> None:
        call()
        gc.collect()

    gc.collect()  # else rubbish from before would count as bytes that this call gave back
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        collected()
        return torch.cuda.memory_allocated() - before
    return running_bytes(collected)[-1]


def warm_up(steps: Steps) -> int:
    """Take a pass, then two steps with all methods; return the bytes that stay of these steps."""
    steps.forward_backward()  # compiles, and allocates work space
    steps.model.zero_grad()

    def begin() -> None:
        steps.prepare_optimizer()
        for number in (1, 2):
            steps.timed(number)

    return measured_growth(begin, steps.device)


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
