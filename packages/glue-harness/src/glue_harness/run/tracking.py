"""Logged steps and evaluations in TensorBoard, Weights & Biases, MLflow or Trackio, through accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate import Accelerator

from finetune_common.aliases import JsonObject, Settings
from glue_harness.config.fields import RunConfig
from glue_harness.extras import need
from glue_harness.run.records import TRACKER, write_whole

__all__ = ["check_tracker", "flat", "numbers", "tracked"]

PROJECT = "glue-harness"
"""Project name for trackers that have projects."""


def check_tracker(config: RunConfig) -> None:
    """Refuse a tracker that is not installed, with the remedy."""
    if config.tracker is not None:
        need(config.tracker, config.tracker)


def flat(settings: Settings, prefix: str = "") -> JsonObject:
    """Return nested settings as one level of text, numbers and truth values.

    Examples:
        >>> flat({"epochs": 3, "optimizer": {"name": "sgd", "betas": [0.9, 0.99]}, "data_dir": None})
        {'epochs': 3, 'optimizer.name': 'sgd', 'optimizer.betas': '[0.9, 0.99]', 'data_dir': 'None'}
    """
    level: JsonObject = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            level |= flat(value, f"{prefix}{name}.")
        else:
            level[prefix + name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return level


def numbers(values: JsonObject) -> dict[str, float]:
    """Return the values that a tracker can draw as curves."""
    return {name: value for name, value in flat(values).items() if isinstance(value, (int, float))}


@contextmanager
def tracked(accelerator: Accelerator, config: RunConfig, step: int) -> Iterator[None]:
    """Begin or continue a run in its tracker, and end it there.

    Args:
        accelerator: Made with `log_with`; only its main process talks to the tracker.
        config: The run; its folder keeps the identifier under which the tracker knows it.
        step: Optimizer steps done before; the tracker's later entries are overwritten.
    """
    if config.tracker is not None:
        file, name = Path(config.output_dir) / TRACKER, Path(config.output_dir).name
        known = file.read_text(encoding="utf-8").strip() if file.exists() else None
        identifier = known or uuid4().hex[:12]
        options: dict[str, JsonObject] = {
            "tensorboard": {"purge_step": step + 1} if step else {},
            "wandb": {"name": name, "id": identifier, "resume": "allow", "dir": config.output_dir},
            "mlflow": {"run_name": name, "run_id": known},
            "trackio": {"name": f"{name}-{identifier}", "resume": "allow"},
        }
        project = "tensorboard" if config.tracker == "tensorboard" else PROJECT
        accelerator.init_trackers(project, None if known else flat(config.as_dict()), options)
        if accelerator.is_main_process and known is None:
            if config.tracker == "mlflow":  # its server assigns the identifier
                started: Any = accelerator.get_tracker("mlflow", unwrap=True)
                identifier = started.info.run_id
            write_whole(file, f"{identifier}\n")
    try:
        yield
    finally:
        if config.tracker is not None:
            for tracker in accelerator.trackers:
                tracker.finish()
