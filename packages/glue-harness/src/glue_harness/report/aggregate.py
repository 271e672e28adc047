"""Runs that differ in nothing but the seed become one row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from glue_harness.config import SLOTS

__all__ = ["Row", "summarise"]

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """One setting on one task.

    Attributes:
        task: The task.
        model: The model.
        setting: What tells this row from the others, in words.
        seeds: The seeds of its runs.
        metrics: Metric → (mean, standard deviation over seeds or None) at the last evaluation.
        best: Metric → the same at each run's best evaluation.
        primary: The metric that counts first.
        examples_per_second: Mean over runs.
        peak_memory_bytes: Largest of the runs.
        trainable: Trainable parameters.
        runs: The folders.
    """

    task: str
    model: str
    setting: str
    seeds: tuple[int, ...]
    metrics: dict[str, tuple[float, float | None]]
    best: dict[str, tuple[float, float | None]]
    primary: str
    examples_per_second: float
    peak_memory_bytes: int
    trainable: int
    runs: tuple[str, ...]


def _settings(result: Result) -> dict[str, Any]:
    """Flatten what decides a run, without what identifies the row or the seed."""
    flat: dict[str, Any] = {}
    for key, value in {**result["settings"], **result["slots"]}.items():
        if key in ("task", "model", "seed"):
            continue
        choices = value if isinstance(value, list) else [value]
        if all(isinstance(choice, dict) for choice in choices):
            flat[key] = "+".join(choice["name"] for choice in choices)
            flat |= {f"{key}.{k}": v for choice in choices for k, v in choice.items() if k != "name"}
        else:
            flat[key] = value
    return flat


def _varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options that tell settings apart; a method's own only where the method is shared."""

    def values(name: str) -> dict[str, set[str]]:
        slot, _, option = name.partition(".")
        by_method: dict[str, set[str]] = {}
        for flat in settings:
            if name in flat:
                method = "" if option in ("", "lr") else flat[slot]
                by_method.setdefault(method, set()).add(json.dumps(flat[name]))
        return by_method

    names = sorted({name for flat in settings for name in flat})
    return [name for name in names if any(len(found) > 1 for found in values(name).values())]


def _label(settings: Mapping[str, Any], varying: Sequence[str]) -> str:
    """Say in words what a setting is: its optimizer, and whatever varies."""
    words = [settings["optimizer"]]
    for key in varying:
        value = settings.get(key)
        if key != "optimizer" and value not in (None, ""):
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(shown if key in SLOTS else f"{key.split('.')[-1].replace('_', ' ')} {shown}")
    return ", ".join(words)


def _mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None


def summarise(results: Iterable[Result]) -> list[Row]:
    """Aggregate runs over seeds.

    Args:
        results: Contents of `result.json`, each with its `folder`.

    Returns:
        One row a setting, model and task: tasks in order of appearance, settings by falling primary metric.
    """
    groups: dict[tuple[str, str, str], list[Result]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for result in results:
        flat = _settings(result)
        key = json.dumps(flat, sort_keys=True)
        settings[key] = flat
        groups.setdefault((result["task"], result["model"], key), []).append(result)
    by_task: dict[str, list[dict[str, Any]]] = {}
    for task, _, key in groups:
        by_task.setdefault(task, []).append(settings[key])
    varying = {task: _varying(present) for task, present in by_task.items()}
    rows = []
    for (task, model, key), runs in groups.items():
        last, best = (
            {m: _mean_and_spread([r["metrics"][when][m] for r in runs]) for m in runs[0]["metrics"][when]}
            for when in ("last", "best")
        )
        rows.append(
            Row(
                task=task,
                model=model,
                setting=_label(settings[key], varying[task]),
                seeds=tuple(sorted(r["seed"] for r in runs)),
                metrics=last,
                best=best,
                primary=runs[0]["primary"],
                examples_per_second=fmean(r["examples_per_second"] for r in runs),
                peak_memory_bytes=max(r["peak_memory_bytes"] for r in runs),
                trainable=runs[0]["parameters"]["trainable"],
                runs=tuple(r["folder"] for r in runs),
            )
        )
    order = list(dict.fromkeys(row.task for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.task), row.model, -row.metrics[row.primary][0]))
