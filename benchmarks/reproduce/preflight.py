"""What the paper scale needs, looked at before hours are spent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_common.data import load_task
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import get_task
from glue_harness.models import load_tokenizer
from reproduce.catalogue import Benchmark
from reproduce.estimates import estimate
from reproduce.scales import points

__all__ = ["preflight"]


def _gpu(gigabytes: int) -> str:
    """Return what is wrong with the GPU, nothing where it will do."""
    if not gigabytes:
        return ""
    if not torch.cuda.is_available():
        return f"no CUDA device: {gigabytes} GB of GPU memory are needed"
    found = torch.cuda.get_device_properties(0).total_memory / 1e9
    return "" if found >= gigabytes else f"{found:.0f} GB of GPU memory: {gigabytes} are needed"


def _model(name: str) -> str:
    try:
        load_tokenizer(name)
    except ConfigurationError as error:
        return str(error)
    return ""


def _data(task: str, folder: str | None) -> str:
    try:
        load_task(get_task(task), data_dir=folder)
    except ConfigurationError as error:
        return str(error)
    return ""


def _missing(benchmark: Benchmark, spec: Mapping[str, Any]) -> Iterator[str]:
    yield _gpu(benchmark.at("paper").gpu_memory)
    if benchmark.script is None:
        runs = list(points(spec))
        for model in dict.fromkeys(run["model"] for run in runs):
            yield _model(model)
        for task, folder in dict.fromkeys((run["task"], run.get("data_dir")) for run in runs):
            yield _data(task, folder)
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield "" if free > 20 else f"{free:.0f} GB of disk are free: 20 are needed for checkpoints"


def preflight(benchmark: Benchmark) -> None:
    """Say how long the paper scale takes, and refuse it where something is missing.

    Raises:
        ConfigurationError: GPU, memory, model or data are missing: all of them in one line.
    """
    print(f"{benchmark.name}: {estimate(benchmark, 'paper')} of one GPU", flush=True)
    if missing := [found for found in _missing(benchmark, benchmark.spec("paper")) if found]:
        raise ConfigurationError(f"{benchmark.name} --scale paper: {'; '.join(missing)}")
