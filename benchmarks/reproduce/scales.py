"""Specifications of benchmarks, and the settings that come out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune_common.errors import ConfigurationError
from finetune_common.slots import find
from glue_harness.config.fields import DEFAULTS, LIST_SLOTS, SLOTS
from glue_harness.run.records import read_results
from glue_harness.sweep import spec as sweep
from glue_harness.sweep.scales import changed

__all__ = ["changed", "merged", "points", "read", "results_of", "settings"]


def read(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds.

    Raises:
        ConfigurationError: No such file, or no mapping in it.
    """
    held = _held(path, yaml.safe_load)
    if not isinstance(held, dict):
        raise ConfigurationError(f"{path}: it holds no options: give a specification")
    return held


def results_of(runs: Path) -> list[dict[str, Any]]:
    """Return the results of a sweep, from its folder or from the JSON file that keeps them.

    Raises:
        ConfigurationError: No results there.
    """
    held = _held(runs, json.loads) if runs.is_file() else read_results(runs)
    if not isinstance(held, list) or not held or not all("settings" in result for result in held):
        raise ConfigurationError(f"{runs}: it holds no results of runs: give what collect.py has kept")
    return held


def _held(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}: give a file that is there") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def merged(spec: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a script's specification with the values of a change, mapping by mapping; null takes a key out.

    Examples:
        >>> merged({"steps": 100, "tails": {"n": 1000, "seed": 0}}, {"tails": {"n": 10, "seed": None}})
        {'steps': 100, 'tails': {'n': 10}}
    """
    both = {**spec, **change}
    for key in spec.keys() & change.keys():
        if isinstance(spec[key], Mapping) and isinstance(change[key], Mapping):
            both[key] = merged(spec[key], change[key])
    return {key: value for key, value in both.items() if change.get(key, True) is not None}


def points(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options of every run of a sweep, as they are written."""
    return ({**(spec.get("base") or {}), **point} for point in sweep.points(spec))


def _choice(slot: str, value: Any) -> dict[str, Any]:
    given = {"name": value} if isinstance(value, str) else dict(value)
    name = given.pop("name")
    return {"name": name, **dataclasses.asdict(find(slot, name).Options(**given))}


def settings(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a run, those of its methods among them.

    Examples:
        >>> run = settings({"task": "rte", "model": "demo", "optimizer": {"name": "sgd", "lr": 0.1}})
        >>> run["optimizer"]["momentum"], run["epochs"], run["gradient"]
        (0.9, 3.0, [])
    """
    options = {**DEFAULTS, "model_config": {}, **point}
    for slot, default in SLOTS.items():
        value = point.get(slot, default)
        if slot in LIST_SLOTS:
            several = value if isinstance(value, list) else [value] * (value not in (None, "none"))
            options[slot] = [_choice(slot, one) for one in several]
        else:
            options[slot] = _choice(slot, value)
    return json.loads(json.dumps(options))
