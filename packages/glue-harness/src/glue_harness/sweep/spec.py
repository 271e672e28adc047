"""What a sweep runs: a specification file expanded into configurations."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.config import RunConfig
from glue_harness.parsing import parse_mapping

__all__ = ["PlannedRun", "read_spec"]

KEYS = ("base", "grid", "cases", "exclude")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: What differs from the other runs, and eight digits of the configuration's hash.
        config: Its configuration; `output_dir` is the folder `name` in the sweep's folder.
    """

    name: str
    config: RunConfig


def _expand_variables(value: Any, path: Path) -> Any:
    """Replace `${NAME}` by the environment's value, so that a specification holds no path of a machine."""
    if isinstance(value, dict):
        return {key: _expand_variables(inner, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand_variables(inner, path) for inner in value]
    if isinstance(value, str):
        for name in re.findall(r"\$\{(\w+)\}", value):
            if name not in os.environ:
                raise ConfigurationError(
                    f"{path}: {value!r}: the environment has no {name}: set it and try again"
                )
        return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], value)
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}: give a sweep's YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(spec, dict):
        raise ConfigurationError(f"{path}: expected a mapping with {', '.join(KEYS)}")
    if unknown := [key for key in spec if key not in KEYS]:
        raise ConfigurationError(
            f"{path}: key {unknown[0]!r} is unknown: {did_you_mean(str(unknown[0]), KEYS)}"
        )
    for key, kind in (("base", dict), ("grid", dict), ("cases", list), ("exclude", list)):
        if not isinstance(spec.get(key) or kind(), kind):
            raise ConfigurationError(f"{path}: {key} has to be a {'mapping' if kind is dict else 'list'}")
    for axis, values in (spec.get("grid") or {}).items():
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"{path}: grid.{axis} has to be a list of values, not {values!r}")
    return _expand_variables(spec, path)


def _covers(pattern: Any, value: Any) -> bool:
    """Say whether a value is what an exclusion describes; a name stands for any options."""
    if isinstance(value, dict) and isinstance(pattern, str):
        return value.get("name") == pattern
    if isinstance(value, dict) and isinstance(pattern, dict):
        return all(key in value and _covers(inner, value[key]) for key, inner in pattern.items())
    return pattern == value


def _points(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what differs from the base: every case with every point of the grid, less the exclusions."""
    grid = spec.get("grid") or {}
    for case in spec.get("cases") or [{}]:
        for values in itertools.product(*grid.values()):
            point = {**case, **dict(zip(grid, values, strict=True))}
            whole = {**(spec.get("base") or {}), **point}
            if not any(
                all(key in whole and _covers(pattern, whole[key]) for key, pattern in exclusion.items())
                for exclusion in spec.get("exclude") or []
            ):
                yield point


def _words(key: str, value: Any) -> str:
    if isinstance(value, dict):
        name = [str(value["name"])] if "name" in value else []
        return "-".join(
            [
                *name,
                *(
                    f"{k}{v:g}" if isinstance(v, float) else f"{k}{v}"
                    for k, v in value.items()
                    if k != "name"
                ),
            ]
        )
    if isinstance(value, list):
        return "+".join(_words(key, inner) for inner in value) or "none"
    if isinstance(value, str):
        return Path(value).name
    return (
        f"{key.replace('_', '-')}{value:g}" if isinstance(value, float) else f"{key.replace('_', '-')}{value}"
    )


def read_spec(path: Path, output_dir: Path) -> list[PlannedRun]:
    """Expand a specification.

    Args:
        path: YAML with `base` (any options), `grid` (option → list of values), `cases` (complete
            alternatives) and `exclude` (combinations left out); `${NAME}` is read from the environment.
        output_dir: The sweep's folder.

    Returns:
        The runs, seeds innermost where `seed` is the last axis, each configuration checked.

    Raises:
        ConfigurationError: Names the file and the value.
    """
    spec = _read(path)
    runs: dict[str, PlannedRun] = {}
    for point in _points(spec):
        mapping = {**(spec.get("base") or {}), **point, "output_dir": str(output_dir)}
        try:
            config = parse_mapping(mapping)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        digits = config.hash[:8]
        words = re.sub(r"[^\w.+-]+", "-", "-".join(_words(key, value) for key, value in point.items()))
        name = f"{words[:120]}-{digits}" if words else digits
        runs[digits] = PlannedRun(name, replace(config, output_dir=str(output_dir / name)))
    if not runs:
        raise ConfigurationError(f"{path}: nothing to run: every combination is excluded")
    return list(runs.values())
