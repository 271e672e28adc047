"""What a sweep runs: a specification file expanded into configurations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.config.fields import RunConfig
from glue_harness.config.parsing import parse_mapping
from glue_harness.config.specification import read_specification
from glue_harness.sweep.keeping import KEEPS

__all__ = ["PlannedRun", "points", "read_keep", "read_spec"]

EXPANDED = ("base", "grid", "cases", "exclude")
PARTS = {"base": dict, "grid": dict, "cases": list, "exclude": list, "keep": str}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: What differs from the other runs, and eight digits of the configuration's hash. A folder that
            ends in these digits keeps the name that an earlier specification gave it.
        config: Its configuration; `output_dir` is the folder `name` in the sweep's folder.
    """

    name: str
    config: RunConfig


def _read(path: Path) -> dict[str, Any]:
    spec = read_specification(path, PARTS)
    for axis, values in spec["grid"].items():
        if not isinstance(values, list) or not values:
            raise ConfigurationError(f"{path}: grid.{axis} has to be a list of values, not {values!r}")
    return spec


def _covers(pattern: Any, value: Any) -> bool:
    """Say whether a value is what an exclusion describes; a name stands for any options."""
    if isinstance(value, dict) and isinstance(pattern, str):
        return value.get("name") == pattern
    if isinstance(value, dict) and isinstance(pattern, dict):
        return all(key in value and _covers(inner, value[key]) for key, inner in pattern.items())
    return pattern == value


def points(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what differs from the base: every case with every point of the grid, less the exclusions.

    Examples:
        >>> spec = {"base": {"epochs": 3}, "grid": {"seed": [1, 2]}, "exclude": [{"epochs": 3, "seed": 2}]}
        >>> list(points(spec))
        [{'seed': 1}]
    """
    base, grid, cases, exclude = (spec.get(part) or PARTS[part]() for part in EXPANDED)
    for case in cases or [{}]:
        for values in itertools.product(*grid.values()):
            point = {**case, **dict(zip(grid, values, strict=True))}
            whole = {**base, **point}
            if not any(
                all(key in whole and _covers(pattern, whole[key]) for key, pattern in exclusion.items())
                for exclusion in exclude
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


def _present(folder: Path) -> dict[str, str]:
    """Return digits → name of the runs that a folder has, whatever their specification called them."""
    names = [run.name for run in folder.iterdir()] if folder.is_dir() else []
    return {name[-8:]: name for name in names if re.search(r"(^|-)[0-9a-f]{8}$", name)}


def read_keep(path: Path) -> str:
    """Return which finished runs keep their models: "none", "best" (the default) or "all"."""
    keep = _read(path)["keep"] or "best"
    if keep not in KEEPS:
        raise ConfigurationError(f"{path}: keep: {did_you_mean(keep, KEEPS)}")
    return keep


def read_spec(path: Path, output_dir: Path) -> list[PlannedRun]:
    """Expand a specification.

    Args:
        path: YAML with `base` (any options), `grid` (option → list of values), `cases` (complete
            alternatives), `exclude` (combinations left out) and `keep` (`read_keep`); `${NAME}` is read
            from the environment.
        output_dir: The sweep's folder.

    Returns:
        The runs, seeds innermost where `seed` is the last axis, each configuration checked.

    Raises:
        ConfigurationError: Names the file and the value.
    """
    spec, present = _read(path), _present(output_dir)
    runs: dict[str, PlannedRun] = {}
    for point in points(spec):
        mapping = {**spec["base"], **point, "output_dir": str(output_dir)}
        try:
            config = parse_mapping(mapping)
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        digits = config.hash[:8]
        words = re.sub(r"[^\w.+-]+", "-", "-".join(_words(key, value) for key, value in point.items()))
        name = present.get(digits) or (f"{words[:120]}-{digits}" if words else digits)
        runs[digits] = PlannedRun(name, replace(config, output_dir=str(output_dir / name)))
    if not runs:
        raise ConfigurationError(f"{path}: nothing to run: every combination is excluded")
    return list(runs.values())
