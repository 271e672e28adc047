"""What the paper scale needs, looked at before hours are spent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset_builder

from finetune_common.data import load_task
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import get_task
from glue_harness.config.fields import RunConfig
from glue_harness.run.architectures import find_config
from glue_harness.run.models import load_tokenizer
from glue_harness.sweep.keeping import check_disk
from reproduce.catalogue import Benchmark
from reproduce.scales import points

__all__ = ["preflight"]

ROUNDED = 0.95
"""Share of its nominal memory that a GPU tells of at least: one of 16 GB of 15.8."""


def _gpu(gigabytes: int) -> str:
    """Return what is wrong with the GPU, nothing where it will do."""
    if not gigabytes:
        return ""
    if not torch.cuda.is_available():
        return f"no CUDA device: {gigabytes} GB of GPU memory are needed"
    available = torch.cuda.get_device_properties(0).total_memory / 1e9
    if available >= ROUNDED * gigabytes:
        return ""
    return f"{available:.0f} GB of GPU memory: {gigabytes} are needed"


def _tried(load: Callable[..., Any], *args: Any) -> str:
    try:
        load(*args)
    except ConfigurationError as error:
        return str(error)
    return ""


def _model(name: str, load: Callable[[str], Any]) -> str:
    return _tried(load, name)


def _data(task: str, folder: str | None) -> str:
    return _tried(lambda: load_task(get_task(task), data_dir=folder))


def _images(name: str) -> str:
    try:
        load_dataset_builder(name)
    except (OSError, ValueError) as error:
        return f"data {name}: the hub is needed, once ({' '.join(str(error).split())[:160]})"
    return ""


def _folders(described: Any) -> Iterator[str]:
    """Yield the variables of a script's data folders that are not set, and what the folders hold."""
    if isinstance(described, Mapping):
        for value in described.values():
            name = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
            if name and name[1] not in os.environ:
                yield f"{name[1]}=DIR is not given: {described.get('from', 'a folder')}"
            yield from _folders(value)


def _missing(benchmark: Benchmark, output: Path) -> Iterator[str]:
    spec = benchmark.spec("paper")
    runs = list(points(spec)) if "base" in spec else [spec]
    yield _gpu(benchmark.at("paper").gpu_memory)
    named = (name for run in runs for name in run.get("models", [run.get("model")]) if name)
    for name in dict.fromkeys(named):
        # a script makes its rows up, or has images: it needs no tokenizer
        yield _model(name, find_config if benchmark.script else load_tokenizer)
    if benchmark.script:
        yield _images(spec["data"]) if "data" in spec else ""
        yield from dict.fromkeys(_folders(spec))
        return
    for task, folder in dict.fromkeys((run["task"], run.get("data_dir")) for run in runs):
        yield _data(task, folder)
    configs = [
        RunConfig(run["task"], run["model"], str(output), model_config=run.get("model_config") or {})
        for run in runs
    ]
    yield _tried(check_disk, output, configs, spec.get("keep") or "best", 1)


def preflight(benchmark: Benchmark, output: Path) -> None:
    """Refuse the paper scale where GPU, memory, model, data or disk are missing: all of them in one line."""
    if missing := [fault for fault in _missing(benchmark, output) if fault]:
        raise ConfigurationError(f"--scale paper: {'; '.join(missing)}")
