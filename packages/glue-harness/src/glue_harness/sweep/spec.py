"""What a sweep runs: a specification file expanded into configurations."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean, shown
from glue_harness.config.fields import RunConfig
from glue_harness.config.matching import check_keys, covers, nested, whole
from glue_harness.config.parsing import parse_mapping
from glue_harness.config.specification import read_specification
from glue_harness.sweep.keeping import KEEPS
from glue_harness.sweep.scales import at_scale

__all__ = ["PlannedRun", "points", "read_keep", "read_spec"]

EXPANDED = ("base", "grid", "cases", "where", "exclude")
PARTS = {
    **{"base": dict, "grid": dict, "cases": list, "where": list, "exclude": list},
    **{"keep": str, "scales": dict},
}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: The options that differ between runs, and eight digits of the configuration's hash. A folder
            that ends in these digits keeps its name from an earlier specification.
        config: Its configuration; `output_dir` is the folder `name` in the sweep's folder.
    """

    name: str
    config: RunConfig


def _read(path: Path, scale: str | None) -> JsonObject:
    def chosen(written: Settings) -> JsonObject:
        listed = {part: written.get(part) or [] for part in ("cases", "exclude")}
        for part, mappings in {**listed, "scales": (written.get("scales") or {}).values()}.items():
            if wrong := [entry for entry in mappings if not isinstance(entry, dict)]:
                raise ConfigurationError(
                    f"{path}: {part}: {shown(wrong[0])} is no mapping: give options and their values"
                )
        for rule in written.get("where") or []:
            parts = rule if isinstance(rule, dict) else {}
            if {"if", "then"} != set(parts) or not all(isinstance(part, dict) for part in parts.values()):
                raise ConfigurationError(
                    f"{path}: where: {shown(rule)} is no rule: give 'if' and 'then', each with options"
                )
        return at_scale(written, scale)

    spec = read_specification(path, PARTS, chosen)
    for grid in (spec["grid"], *(case.get("grid") or {} for case in spec["cases"])):
        for axis, values in grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigurationError(f"{path}: grid.{axis}={shown(values)} is no list: give [value, …]")
    return spec


def points(spec: Settings) -> Iterator[JsonObject]:
    """Yield the changes to the base: every case with every point of the grid, except the exclusions.

    An axis with a dot sets one option of a method; a case may add a `grid` to the common one. The rules of
    `where` apply in order: a point that matches a rule's `if` gets the options of its `then`. Exclusions
    apply to the result. Both match the run's settings, those at their defaults among them, however they are
    written.

    Raises:
        ConfigurationError: An exclusion or an `if` with a key that no run has.

    Examples:
        >>> spec = {"base": {"epochs": 3}, "grid": {"seed": [1, 2]}, "exclude": [{"epochs": 3, "seed": 2}]}
        >>> list(points(spec))
        [{'seed': 1}]
        >>> rule = {"if": {"task": "stsb"}, "then": {"metric": "spearmanr"}}
        >>> list(points({"grid": {"task": ["rte", "stsb"]}, "where": [rule]}))
        [{'task': 'rte'}, {'task': 'stsb', 'metric': 'spearmanr'}]
        >>> case = {"optimizer": {"name": "sgd", "momentum": 0}, "grid": {"optimizer.lr": [0.1, 0.2]}}
        >>> [point["optimizer"] for point in points({"cases": [case]})]
        [{'name': 'sgd', 'momentum': 0, 'lr': 0.1}, {'name': 'sgd', 'momentum': 0, 'lr': 0.2}]
    """
    base, grid, cases, where, exclude = (spec.get(part) or PARTS[part]() for part in EXPANDED)
    rules = [(nested(rule["if"]), rule["then"]) for rule in where]
    exclusions = [nested(exclusion) for exclusion in exclude]
    seen = []
    for case in cases or [{}]:
        axes = {**grid, **(case.get("grid") or {})}
        fixed = {option: value for option, value in case.items() if option != "grid"}
        for values in itertools.product(*axes.values()):
            point = {**fixed}
            for option, value in zip(axes, values, strict=True):
                _set(point, base, option, value)
            run = whole({**base, **point}) if rules or exclusions else {}
            for pattern, then in rules:
                if covers(pattern, run):
                    point |= then
                    run = whole({**base, **point})
            seen.append(run)
            if not any(covers(exclusion, run) for exclusion in exclusions):
                yield point
    for part, patterns in {"exclude": exclusions, "where.if": [pattern for pattern, _ in rules]}.items():
        for pattern in patterns:
            check_keys(part, pattern, seen)


def _set(point: JsonObject, base: Settings, option: str, value: object) -> None:
    """Set an option; a dotted one belongs to the method that a case or the base chose for the slot."""
    slot, dot, setting = option.partition(".")
    if not dot:
        point[option] = value
        return
    chosen = point.get(slot, base.get(slot))
    if not isinstance(chosen, str | dict):
        raise ConfigurationError(
            f"grid.{option}: nothing chooses the {slot} method: name it in base, in a case, or as grid.{slot}"
        )
    point[slot] = {**({"name": chosen} if isinstance(chosen, str) else chosen), setting: value}


def _words(key: str, value: object) -> str:
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
    """Return digits → name of the runs in a folder, whichever specification named them."""
    names = [run.name for run in folder.iterdir()] if folder.is_dir() else []
    return {name[-8:]: name for name in names if re.search(r"(^|-)[0-9a-f]{8}$", name)}


def read_keep(path: Path, scale: str | None = None) -> str:
    """Return which finished runs keep their models: "none", "best" (the default) or "all"."""
    keep = _read(path, scale)["keep"] or "best"
    if keep not in KEEPS:
        raise ConfigurationError(f"{path}: keep: {shown(keep)} is unknown: {did_you_mean(keep, KEEPS)}")
    return keep


def read_spec(path: Path, output_dir: Path, scale: str | None = None) -> list[PlannedRun]:
    """Expand a specification.

    Args:
        path: YAML with `base` (any options), `grid` (option → list of values), `cases` (complete
            alternatives), `where` (options that follow from others), `exclude` (combinations left out),
            `keep` (`read_keep`) and `scales`; `${NAME}` is read from the environment.
        output_dir: The sweep's folder.
        scale: See `glue_harness.sweep.scales.at_scale`.

    Returns:
        The runs, seeds innermost where `seed` is the last axis, each configuration checked.

    Raises:
        ConfigurationError: Names the file and the value.
    """
    spec, present = _read(path, scale), _present(output_dir)
    try:
        planned = list(points(spec))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    runs: dict[str, PlannedRun] = {}
    for point in planned:
        mapping = {**spec["base"], **point, "output_dir": str(output_dir)}
        try:
            config = parse_mapping(mapping)
            digits = config.hash[:8]  # reads the user's rows, if there are any
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None
        words = re.sub(r"[^\w.+-]+", "-", "-".join(_words(key, value) for key, value in point.items()))
        name = present.get(digits) or (f"{words[:120]}-{digits}" if words else digits)
        runs[digits] = PlannedRun(name, replace(config, output_dir=str(output_dir / name)))
    if not runs:
        raise ConfigurationError(f"{path}: nothing to run: 'exclude' leaves out every combination")
    return list(runs.values())
