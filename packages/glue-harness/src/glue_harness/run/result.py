"""What `result.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from finetune_common.aliases import JsonObject
from finetune_common.measure import peak_memory_bytes
from glue_harness.hardware import hardware, versions
from glue_harness.run.evaluation import by_task
from glue_harness.run.methods import method_versions
from glue_harness.run.mixture import Mixture
from glue_harness.run.reading import SCHEMA

if TYPE_CHECKING:
    from glue_harness.run.loop import Training

__all__ = ["result_of"]


def result_of(training: Training) -> JsonObject:
    """Return the result of a run so far: its settings, scores, time and memory."""
    config, history, processes = training.config, training.history, training.processes
    seconds = training.watch.seconds()
    settings = config.identity()
    slots = {slot: settings.pop(slot) for slot in ("adaptation", "activation", "gradient", "optimizer")}
    more: JsonObject = {"tasks": _each(training)} if config.several else {}
    more |= {"beside": training.beside} if training.beside else {}
    trained = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    return {
        "schema": SCHEMA,
        "task": config.task,
        "model": config.model,
        "seed": config.seed,
        "hash": config.hash,
        "slots": slots,
        "settings": settings,
        "columns": list(training.task.columns),
        "rows": {split: len(lengths) for split, lengths in training.data.lengths.items()},
        "primary": history.primary,
        "metrics": {"last": history.last["metrics"], "best": history.best["metrics"]},
        "test": training.tested,
        "history": history.entries,
        "data": training.data.record,
        "classes": {} if config.several else _classes(training).get("", {}),
        "steps": training.step,
        "stopped_early": training.stopped_early,
        "examples_per_second": training.examples / (sum(seconds.values()) - seconds["evaluation"]),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(processes.device),
        "saved_activation_bytes": training.saved_bytes,
        "parameters": {
            "trainable": sum(p.numel() for p in trained),
            "total": sum(p.numel() for p in training.model.parameters()),
        },
        "versions": versions() | method_versions(config),
        "hardware": hardware(processes.device) | {"processes": processes.world, "sharded": processes.sharded},
        **more,
    }


def _classes(training: Training) -> JsonObject:
    evaluation, data = training.evaluation, training.data
    if evaluation is None:
        return {}
    return {name: part.of_classes(rows) for name, part, rows in by_task(evaluation, data)}


def _each(training: Training) -> JsonObject:
    """Return the results of each of several tasks, in the form of a separate run."""
    data, history, classes = training.data, training.history, _classes(training)
    assert isinstance(data, Mixture)
    return {
        name: {
            "columns": list(part.task.columns),
            "rows": {split: len(lengths) for split, lengths in part.lengths.items()},
            "primary": part.task.primary,
            "metrics": {
                which: _of_task(entry["metrics"], name)
                for which, entry in (("last", history.last), ("best", history.best))
            },
            "test": _of_task(training.tested or {}, name) or None,
            "data": part.record,
            "classes": classes.get(name, {}),
        }
        for name, part in data.parts.items()
    }


def _of_task(metrics: Mapping[str, float], task: str) -> dict[str, float]:
    """Return the metrics of one of several tasks, by their own names."""
    begin = f"{task}."
    return {name.removeprefix(begin): value for name, value in metrics.items() if name.startswith(begin)}
