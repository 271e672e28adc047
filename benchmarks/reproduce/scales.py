"""Specifications of benchmarks, and the settings that come out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from finetune_common.slots import find
from glue_harness.config.fields import LIST_SLOTS, SLOTS, RunConfig
from glue_harness.sweep import spec as sweep
from glue_harness.sweep.scales import changed

__all__ = ["DEFAULTS", "changed", "merged", "points", "read", "settings"]

DEFAULTS = {
    option.name: option.default
    for option in dataclasses.fields(RunConfig)
    if option.default is not dataclasses.MISSING
} | {"model_config": {}}


def read(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def merged(spec: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a script's specification with the values of a change, mapping by mapping; null takes a key out.

    Examples:
        >>> merged({"steps": 100, "tails": {"n": 1000, "seed": 0}}, {"tails": {"n": 10, "seed": None}})
        {'steps': 100, 'tails': {'n': 10}}
    """
    both = {**spec}
    for key, value in change.items():
        inner = both.get(key)
        nested = isinstance(inner, Mapping) and isinstance(value, Mapping)
        both[key] = merged(inner, value) if nested else value
    return {key: value for key, value in both.items() if change.get(key, True) is not None}


def points(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options of every run of a sweep, as they are written."""
    for point in sweep.points(spec):
        yield {**(spec.get("base") or {}), **point}


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
    found = {**DEFAULTS, **point}
    for slot, default in SLOTS.items():
        value = point.get(slot, default)
        if slot in LIST_SLOTS:
            several = value if isinstance(value, list) else [value] * (value not in (None, "none"))
            found[slot] = [_choice(slot, one) for one in several]
        else:
            found[slot] = _choice(slot, value)
    return json.loads(json.dumps(found))
