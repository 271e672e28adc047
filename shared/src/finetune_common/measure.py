"""The cost of a run: seconds per part of a step, peak memory, bytes of saved tensors."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["SavedTensorMeter", "Stopwatch", "peak_memory_bytes", "reset_peak_memory"]

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux's file for a process's peak, and the file that resets it when 5 is written."""

Instant: TypeAlias = "float | torch.cuda.Event"
"""A moment: seconds of the host's clock, or an event on a CUDA stream."""


class Stopwatch:
    """Seconds spent in each part of a loop; one part runs at a time.

    On CUDA the parts are timed by events on the stream and summed later, so that the host does not wait for
    the device.

    Args:
        parts: Names of the parts.
        device: Where the work happens.

    Examples:
        >>> watch = Stopwatch(["forward", "backward"])
        >>> watch.switch("forward"); watch.switch("backward"); watch.switch(None)
        >>> sorted(watch.seconds()), all(s >= 0 for s in watch.seconds().values())
        (['backward', 'forward'], True)
    """

    PENDING = 4096

    def __init__(self, parts: Iterable[str], device: torch.device | str = "cpu") -> None:
        self._seconds = dict.fromkeys(parts, 0.0)
        self._on_cuda = torch.device(device).type == "cuda"
        self._part: str | None = None
        self._since: Instant = 0.0
        self._pending: list[tuple[str, Instant, Instant]] = []

    def switch(self, part: str | None) -> None:
        """End the current part and begin `part`; None stops."""
        now = _recorded_event() if self._on_cuda else time.perf_counter()
        if self._part is not None:
            self._pending.append((self._part, self._since, now))
            if not self._on_cuda or len(self._pending) >= self.PENDING:
                self._settle()
        self._part, self._since = part, now

    def _settle(self) -> None:
        if self._pending and isinstance(last := self._pending[-1][2], torch.cuda.Event):
            last.synchronize()
        for part, start, end in self._pending:
            self._seconds[part] += _seconds_between(start, end)
        self._pending.clear()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every part so far."""
        self._settle()
        return dict(self._seconds)

    def add(self, seconds: dict[str, float]) -> None:
        """Add the seconds of an earlier, interrupted run."""
        for part, value in seconds.items():
            self._seconds[part] += value


def _recorded_event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(start: Instant, end: Instant) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end) / 1000


def peak_memory_bytes(device: torch.device | str = "cpu") -> int:
    """Return the peak of memory since `reset_peak_memory`, or since the process began.

    Args:
        device: On CUDA the allocator's peak; on the CPU the process's largest resident set.

    Returns:
        Bytes.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        [line] = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Restart the count of `peak_memory_bytes`; on a CPU only if the system can (Linux)."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        with suppress(OSError):
            RESET.write_text("5")


class SavedTensorMeter(saved_tensors_hooks):
    """Count the bytes that a forward pass keeps for backward.

    A context manager around the forward pass. Each storage counts once, however many operations or views
    saved it; the model's parameters and buffers do not count, nor do autocast's copies of them.

    Args:
        model: Its parameters and buffers are left out.

    Examples:
        >>> layer = torch.nn.Linear(4, 2)
        >>> with SavedTensorMeter(layer) as meter:
        ...     loss = layer(torch.ones(3, 4)).square().sum()
        >>> meter.bytes  # the input (3, 4) and the output (3, 2), float32
        72
    """

    def __init__(self, model: torch.nn.Module) -> None:
        of_model = [*model.parameters(), *model.buffers()]
        self._of_model = {_storage_id(t) for t in of_model}
        self._frozen = {(t.shape, t.dtype) for t in of_model if t.is_floating_point() and not t.requires_grad}
        self._seen: dict[int, StorageWeakRef] = {}
        self.bytes = 0
        super().__init__(self._keep, lambda tensor: tensor)

    def __enter__(self) -> SavedTensorMeter:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's: None
        super().__enter__()
        return self

    def _keep(self, tensor: Tensor) -> Tensor:
        self._count(tensor)
        # An output that held itself would keep its graph for ever where no backward pass follows.
        return tensor if tensor.grad_fn is None else tensor.detach()

    def _count(self, tensor: Tensor) -> None:
        if isinstance(tensor, torch.nn.Parameter) or isinstance(tensor._base, torch.nn.Parameter):
            return  # gathered from the shards of FSDP for this pass
        if self._is_copy(tensor):
            return
        storage, key = tensor.untyped_storage(), _storage_id(tensor)
        if key not in self._of_model and key not in self._seen:
            # The weak reference keeps the address from being reused while the meter lives.
            self._seen[key] = StorageWeakRef(storage)
            self.bytes += storage.nbytes()

    def _is_copy(self, tensor: Tensor) -> bool:
        """Say whether a tensor is a view of a weight in another dtype, by its history or its shape."""
        base = tensor if tensor._base is None else tensor._base
        if not base.requires_grad:
            half = base.dtype == torch.get_autocast_dtype(base.device.type)
            return half and any(shape == base.shape and dtype != base.dtype for shape, dtype in self._frozen)
        node = base.grad_fn
        while node is not None and node.name() in ("TBackward0", "TransposeBackward0"):
            node = node.next_functions[0][0]
        if node is None or node.name() != "ToCopyBackward0":
            return False
        source = getattr(node.next_functions[0][0], "variable", None)
        return isinstance(source, Tensor) and _storage_id(source) in self._of_model


def _storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]  # unlike data_ptr() never 0
