"""Which finished runs of a sweep keep their models, and the disk that a sweep needs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import RunConfig
from glue_harness.run.records import ADAPTER, MODEL

__all__ = ["KEEPS", "SMALL", "check_disk", "disk_needed", "keep_models"]

KEEPS = ("none", "best", "all")
"""No run keeps its model, the best run of each task does, or every run."""

SMALL = 200_000
"""Bytes of a finished run without its model, at most."""

WORKING = 9
"""Most disk that a run uses, in multiples of its weights: two checkpoints, each of weights and three states
of the optimizer, and the best weights."""


def keep_models(folder: Path, keep: str) -> None:
    """Remove files that a finished run no longer needs, and the models of runs that are not the best.

    Args:
        folder: The run's folder, beside those of the sweep's other runs.
        keep: One of `KEEPS`.
    """
    from glue_harness.run.checkpoint import drop_state
    from glue_harness.run.models import has_weights

    if has_weights(folder / MODEL) or (folder / ADAPTER).is_dir():
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    drop_state(folder / "checkpoint")
    if keep == "all":
        return
    task, _ = _standing(folder)
    with FileLock(folder.parent / ".keep.lock"):
        beside = [place.parent for place in folder.parent.glob(f"*/{MODEL}") if _is_of_a_sweep(place.parent)]
        standings = {run: _standing(run) for run in {*beside, folder}}
        scores = {run: score for run, (learned, score) in standings.items() if learned == task}
        leader = min(scores, key=lambda run: (-scores[run], run.name))
        for run in scores:
            if keep == "none" or run != leader:
                _make_small(run)


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _standing(folder: Path) -> tuple[str, float]:
    """Return a finished run's task, and its primary metric after the last step."""
    result = _result(folder)
    return result["task"], result["metrics"]["last"][result["primary"]]


def _is_of_a_sweep(folder: Path) -> bool:
    """Say whether a folder holds a finished run and has a name given by a sweep."""
    return (folder / "result.json").exists() and folder.name.endswith(_result(folder)["hash"][:8])


def _make_small(folder: Path) -> None:
    """Remove the model and large predictions."""
    for name in ("checkpoint", MODEL, ADAPTER):
        shutil.rmtree(folder / name, ignore_errors=True)
    files = [file for file in folder.iterdir() if file.is_file()]
    if sum(file.stat().st_size for file in files) > SMALL:
        for large in folder.glob("predictions*.tsv"):
            large.unlink()


def disk_needed(configs: Sequence[RunConfig], keep: str, jobs: int) -> int:
    """Return the most bytes that runs need on disk: while they run, and afterwards.

    Args:
        configs: The runs.
        keep: One of `KEEPS`.
        jobs: Runs at a time.

    Raises:
        ConfigurationError: A model whose size is not known.
    """
    import torch

    from glue_harness.run.models import build_model

    sizes: dict[str, int] = {}
    each: list[tuple[str, int]] = []
    for config in configs:
        shape = json.dumps([config.model, config.model_config], sort_keys=True)
        if shape not in sizes:
            with torch.device("meta"):
                model = build_model(config.model, config.model_config, max_length=1)
            sizes[shape] = 4 * sum(parameter.numel() for parameter in model.parameters())
        each.append((config.task, sizes[shape] * len(config.tasks)))  # each leaves a whole model
    largest: dict[str, int] = {}
    for task, size in each:
        largest[task] = max(size, largest.get(task, 0))
    stays = {"none": 0, "best": sum(largest.values()), "all": sum(size for _, size in each)}[keep]
    at_once = WORKING * min(jobs, len(configs)) * max(sizes.values(), default=0)
    return stays + at_once + SMALL * len(configs)


def check_disk(folder: Path, configs: Sequence[RunConfig], keep: str, jobs: int) -> str:
    """Say how much disk runs need and how much is free.

    Args:
        folder: Will hold the runs; it need not exist yet.
        configs: The runs.
        keep: One of `KEEPS`.
        jobs: Runs at a time.

    Raises:
        ConfigurationError: Too little disk is free.
    """
    try:
        needed = disk_needed(configs, keep, jobs)
    except ConfigurationError as error:
        return f"disk: unknown ({error})"
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    sizes = f"needs about {needed / 1e9:,.1f} GB of disk (keep: {keep}), {free / 1e9:,.1f} GB are free"
    if needed > free:
        raise ConfigurationError(
            f"{folder}: {sizes}: make room, or keep fewer models with 'keep: best' or 'keep: none' in the "
            "specification"
        )
    return sizes
