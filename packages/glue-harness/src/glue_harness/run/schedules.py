"""Learning-rate schedules: warm-up, then what a run's `schedule` names."""

from __future__ import annotations

import math
from functools import partial

import torch
import transformers

from glue_harness.config.fields import RunConfig

__all__ = ["schedule_of"]


def schedule_of(
    config: RunConfig, steps: int, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a run's learning-rate schedule.

    Args:
        config: Its `schedule`, `warmup`, and `schedule_steps` where the schedule is made for other steps.
        steps: Of the run.
        optimizer: Has the highest rate.
    """
    total = config.schedule_steps or steps
    warmup = math.ceil(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    if config.schedule == "warmup-linear":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_warmup_linear, warmup, total))
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return transformers.get_scheduler(name, optimizer, warmup, total)


def _warmup_linear(warmup: int, total: int, step: int) -> float:
    """The schedule of pytorch-pretrained-bert: step/warmup, then at once 1 - step/total."""
    return step / warmup if step < warmup else max(0.0, 1 - step / total)
