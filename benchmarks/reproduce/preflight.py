"""What the paper scale needs, looked at before hours are spent."""

from __future__ import annotations

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
    found = torch.cuda.get_device_properties(0).total_memory / 1e9
    return "" if found >= ROUNDED * gigabytes else f"{found:.0f} GB of GPU memory: {gigabytes} are needed"


def _models(spec: Mapping[str, Any]) -> list[str]:
    """Return the models that a specification names, that of a sweep or of a script."""
    parts = points(spec) if "base" in spec else [spec]
    named = (name for part in parts for name in part.get("models", [part.get("model")]))
    return [name for name in dict.fromkeys(named) if name]


def _model(name: str, load: Callable[[str], Any]) -> str:
    try:
        load(name)
    except ConfigurationError as error:
        return str(error)
    return ""


def _data(task: str, folder: str | None) -> str:
    try:
        load_task(get_task(task), data_dir=folder)
    except ConfigurationError as error:
        return str(error)
    return ""


def _images(name: str) -> str:
    try:
        load_dataset_builder(name)
    except (OSError, ValueError) as error:
        return (
            f"data {name}: cannot be loaded ({' '.join(str(error).split())[:160]}): the hub is needed, once"
        )
    return ""


def _disk(spec: Mapping[str, Any], output: Path) -> str:
    """Return what is wrong with the disk of a folder, which may not be there yet."""
    configs = [
        RunConfig(run["task"], run["model"], str(output), model_config=run.get("model_config") or {})
        for run in points(spec)
    ]
    try:
        check_disk(output, configs, spec.get("keep") or "best", jobs=1)
    except ConfigurationError as error:
        return str(error)
    return ""


def _missing(benchmark: Benchmark, spec: Mapping[str, Any], output: Path) -> Iterator[str]:
    yield _gpu(benchmark.at("paper").gpu_memory)
    for model in _models(spec):
        # a script makes its rows up, or has images: it needs no tokenizer
        yield _model(model, find_config if benchmark.script else load_tokenizer)
    if benchmark.script is None:
        for task, folder in dict.fromkeys((run["task"], run.get("data_dir")) for run in points(spec)):
            yield _data(task, folder)
    elif "data" in spec:
        yield _images(spec["data"])
    if benchmark.script is None:
        yield _disk(spec, output)


def preflight(benchmark: Benchmark, output: Path) -> None:
    """Refuse the paper scale where something is missing.

    Raises:
        ConfigurationError: GPU, memory, model, data or disk are missing: all of them in one line.
    """
    if missing := [found for found in _missing(benchmark, benchmark.spec("paper"), output) if found]:
        raise ConfigurationError(f"--scale paper: {'; '.join(missing)}")
