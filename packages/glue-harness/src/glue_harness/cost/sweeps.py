"""Hours and memory of many runs, estimated from shapes alone, without data or a GPU."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError
from finetune_common.tasks import TASKS
from glue_harness.config.fields import RunConfig
from glue_harness.cost.footprint import predict
from glue_harness.run.models import build_model

__all__ = ["CORE", "FILLED", "GPU", "forecast", "operations", "parameters_per_token", "run_seconds"]

FILLED = 0.5
"""Length of a padded row as a share of `max_length`."""

CORE, GPU = 4e10, 1.5e13
"""Arithmetic operations per second of a run on a CPU core (measured: SST-2 with MiniLM), and on a data-centre
GPU in fp32 (assumed)."""

START = 2.0
"""Seconds before a run's first step."""


def parameters_per_token(model: str, model_config: Settings | None = None) -> int:
    """Return how many parameters process a token: embeddings do not count, shared layers count each time.

    Args:
        model: Preset, hub name, folder, or `demo`.
        model_config: Fields of its configuration to change.

    Raises:
        ConfigurationError: A model of unknown shape.

    Examples:
        >>> [parameters_per_token(name) // 10**6 for name in ("bert-base-uncased", "albert-base-v2")]
        [85, 85]
    """
    with torch.device("meta"):
        built = build_model(model, model_config, max_length=1).eval()
        matrices = {
            module: sum(weight.numel() for weight in module.parameters(recurse=False) if weight.ndim > 1)
            for module in built.modules()
            if not isinstance(module, nn.Embedding)
        }
        count = 0

        def add(module: nn.Module, *_: object) -> None:
            nonlocal count
            count += matrices[module]

        for module in matrices:
            module.register_forward_hook(add)
        # without values, a head that looks for the end of a text fails, but only after the body has run
        with suppress(RuntimeError, NotImplementedError):
            built(input_ids=torch.zeros(1, 8, dtype=torch.long))
    return count or sum(matrices.values())


def operations(config: RunConfig, parameters: int) -> float:
    """Return a run's arithmetic operations: 6 per parameter and token in training, 2 in evaluation.

    Args:
        config: A run of known tasks.
        parameters: From `parameters_per_token`.
    """
    tasks, most = [TASKS[name] for name in config.tasks], config.max_train_samples or math.inf
    held = config.hold_out if isinstance(config.hold_out, dict) else {}
    rows = sum(min(task.rows["train"] - sum(held.values()), most) for task in tasks)
    step = config.batch_size * config.accumulate
    trained = config.max_steps * step if config.max_steps else rows * config.epochs
    evaluated = [
        held.get(split) or task.rows[split]
        for task in tasks
        for split in (config.evaluate_on or task.evaluation)
    ]
    held_out = sum(min(count, config.max_eval_samples or math.inf) for count in evaluated)
    evaluations = max(1.0, trained / step / config.eval_every if config.eval_every else config.epochs)
    return parameters * FILLED * config.max_length * (6 * trained + 2 * held_out * evaluations)


def run_seconds(configs: Sequence[RunConfig], speed: float) -> float:
    """Return the seconds of runs, one after another, at a number of operations per second.

    Raises:
        ConfigurationError: The user's rows, which are not read for this, or a model of unknown shape.
    """
    sizes: dict[str, int] = {}
    seconds = 0.0
    for config in configs:
        if config.has_own_rows or not set(config.tasks) <= TASKS.keys():
            raise ConfigurationError(f"the number of rows of {config.task} is unknown before a run")
        shape = json.dumps([config.model, config.model_config], sort_keys=True)
        if shape not in sizes:
            sizes[shape] = parameters_per_token(config.model, config.model_config)
        seconds += START + operations(config, sizes[shape]) / speed
    return seconds


def _memory(configs: Sequence[RunConfig]) -> str:
    """Say what the largest step needs: each model's run with the most tokens, activations kept."""
    largest: dict[str, RunConfig] = {}
    for config in sorted(
        configs, key=lambda c: (c.activation["name"] == "none", c.batch_size * c.max_length)
    ):
        largest[json.dumps([config.model, config.model_config], sort_keys=True)] = config
    peaks, unknown = {}, []
    for config in largest.values():
        try:
            peaks[config.model] = predict(replace(config, compile=False)).peak  # compiled, about as much
        except (ConfigurationError, DataDependentOutputException, DynamicOutputShapeException):
            # the model is not on this machine, or it reads values, which fake rows do not have
            unknown.append(config.model)
    if not peaks:
        return "memory: unknown"
    most = max(peaks, key=lambda model: peaks[model])
    without = f"; unknown: {', '.join(unknown)}" if unknown else ""
    return f"about {peaks[most] / 1e9:.1f} GB of memory for a step of {most}{without}"


def forecast(configs: Sequence[RunConfig], jobs: int) -> str:
    """Say what runs will need: hours of one GPU and of one core, and the memory of a step.

    Args:
        configs: The runs.
        jobs: Runs at a time.
    """
    try:
        gpu, core = (run_seconds(configs, speed) / 3600 for speed in (GPU, CORE))
        shared = f", shared by {jobs} runs at a time" if jobs > 1 else ""
        hours = f"about {gpu:,.1f} h of one GPU or {core:,.0f} h of one core{shared}"
    except ConfigurationError as error:
        hours = f"hours: unknown ({error})"
    return f"{hours}; {_memory(configs)}"
