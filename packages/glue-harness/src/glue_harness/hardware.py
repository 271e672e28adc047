"""The hardware and library versions of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from finetune_common.aliases import JsonObject

__all__ = ["flushed_denormals", "hardware", "versions"]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device) -> JsonObject:
    """Describe the processor, its cores in use, and the accelerator if a run used one."""
    described: JsonObject = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return described


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero: vanishing second moments would slow a CPU down."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that affect a run's numbers."""
    libraries = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "glue-harness")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}
