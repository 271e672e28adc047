"""One specification, several scales: what a scale changes, and the settings that come out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune_common.errors import ConfigurationError, did_you_mean
from finetune_common.slots import find
from glue_harness.config.fields import LIST_SLOTS, SLOTS, RunConfig
from glue_harness.sweep import spec as sweep

__all__ = ["changed", "covers", "merged", "points", "read", "settings"]

CHANGES = ("base", "defaults", "grid", "cases", "one_of_each", "keep")

DEFAULTS = {
    option.name: option.default
    for option in dataclasses.fields(RunConfig)
    if option.default is not dataclasses.MISSING
}


def read(path: Path) -> dict[str, Any]:
    """Return what a YAML file holds."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _kind(value: Any) -> Any:
    """Say which method a value chooses; values that choose none are all of a kind."""
    if isinstance(value, Mapping):
        return value.get("name")
    if isinstance(value, list):
        return tuple(_kind(inner) for inner in value)
    return None


def _one_of_each(values: Sequence[Any]) -> list[Any]:
    """Keep the first value of each method."""
    return list({repr(_kind(value)): value for value in reversed(values)}.values())[::-1]


def _one_case_of_each(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({repr([_kind(v) for v in case.values()]): case for case in reversed(cases)}.values())[::-1]


def changed(spec: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sweep's specification as a scale changes it.

    Args:
        spec: `base`, `grid`, `cases` and `exclude` as in the file of a sweep.
        change: `base` sets options, which then are neither axes of the grid nor told by a case; `defaults`
            sets options that axes and cases may still override; `grid` sets axes; `cases` replaces the
            cases; `keep` says which models are kept; `one_of_each` keeps the first value of each method on
            every axis and the first case of each method.

    Raises:
        ConfigurationError: A key that is none of these.

    Examples:
        >>> spec = {"base": {"epochs": 3}, "grid": {"task": ["rte", "mrpc"], "seed": [1, 2]}}
        >>> changed(spec, {"base": {"task": "sst2"}, "grid": {"seed": [1]}})
        {'base': {'epochs': 3, 'task': 'sst2'}, 'grid': {'seed': [1]}}
    """
    if unknown := [key for key in change if key not in CHANGES]:
        raise ConfigurationError(f"a scale's {unknown[0]!r} is unknown: {did_you_mean(unknown[0], CHANGES)}")
    fixed = change.get("base") or {}
    grid = {axis: values for axis, values in (spec.get("grid") or {}).items() if axis not in fixed}
    cases = [
        {key: value for key, value in case.items() if key not in fixed} for case in spec.get("cases") or []
    ]
    if change.get("one_of_each"):
        grid = {axis: _one_of_each(values) for axis, values in grid.items()}
        cases = _one_case_of_each(cases)
    new = {
        "base": {**(spec.get("base") or {}), **(change.get("defaults") or {}), **fixed},
        "grid": {**grid, **(change.get("grid") or {})},
        "cases": change.get("cases") or cases,
        "exclude": spec.get("exclude"),
        "keep": change.get("keep") or spec.get("keep"),
    }
    return {key: value for key, value in new.items() if value}


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


def covers(pattern: Any, value: Any) -> bool:
    """Say whether settings are what a pattern describes: it may leave out keys, and name one of a list.

    Examples:
        >>> covers({"optimizer": {"lr": 0.1}}, {"optimizer": {"name": "sgd", "lr": 0.1}, "seed": 1})
        True
        >>> covers({"epochs": 15}, {"epochs": [0, 15]}), covers({"epochs": [15]}, {"epochs": [0, 15]})
        (True, False)
    """
    if isinstance(pattern, Mapping) and isinstance(value, Mapping):
        return all(key in value and covers(inner, value[key]) for key, inner in pattern.items())
    if isinstance(value, list) and not isinstance(pattern, list):
        return any(covers(pattern, one) for one in value)
    if isinstance(value, list) and isinstance(pattern, list):
        return len(pattern) == len(value) and all(map(covers, pattern, value))
    return pattern == value
