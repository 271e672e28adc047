"""What is searched: a specification file with a base, a space and mutations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean, shown
from glue_harness.config.fields import SLOTS, RunConfig
from glue_harness.config.parsing import parse_mapping
from glue_harness.config.specification import read_specification

__all__ = ["Range", "SearchSpec", "read_search"]

KINDS = ("uniform", "loguniform", "randint", "choice")
PARTS = {"base": dict, "space": dict, "mutations": dict}

FIXED = ("task", "output_dir", "overwrite", "save_every")
"""Options that are the same for all trials."""


@dataclass(frozen=True)
class Range:
    """The values that an option may take.

    Attributes:
        kind: `uniform`, `loguniform`, `randint` (the upper end is left out) or `choice`.
        values: The two ends, or the choices.
    """

    kind: str
    values: tuple[Any, ...]

    def examples(self) -> tuple[Any, ...]:
        """Return the ends, or all values of a list. If these are legal, every value in the range is."""
        if self.kind == "randint":
            return self.values[0], self.values[1] - 1
        return self.values

    def nearest(self, value: Any) -> Any:
        """Return the nearest value in the range; a choice is returned unchanged.

        Examples:
            >>> Range("uniform", (0.0, 0.3)).nearest(0.36)
            0.3
            >>> Range("randint", (6, 20)).nearest(24)
            19
        """
        if self.kind == "choice":
            return value
        low, high = self.examples()
        return min(max(value, low), high)


def _range(name: str, described: object) -> Range:
    """Read `{loguniform: [1.0e-5, 1.0e-4]}`."""
    if not isinstance(described, dict) or len(described) != 1:
        raise ConfigurationError(
            f"{name}={shown(described)} is no range: give one of {', '.join(KINDS)} and its values, e.g. "
            f"{name.partition('.')[2]}: {{uniform: [0, 0.3]}}"
        )
    [(kind, values)] = described.items()
    if kind not in KINDS:
        raise ConfigurationError(f"{name}: {kind!r} is unknown: {did_you_mean(str(kind), KINDS)}")
    if not isinstance(values, list) or not values:
        raise ConfigurationError(f"{name}: {kind} takes a list of values, not {shown(values)}")
    if kind == "choice":
        return Range(kind, tuple(values))
    number = int if kind == "randint" else (int, float)
    if len(values) != 2 or not all(isinstance(end, number) and not isinstance(end, bool) for end in values):
        adjective = "whole " if kind == "randint" else ""
        raise ConfigurationError(f"{name}: {kind} takes two {adjective}numbers, not {shown(values)}")
    low, high = values if kind == "randint" else map(float, values)
    if not low < high or (kind == "loguniform" and low <= 0):
        above = "above 0 and " if kind == "loguniform" else ""
        raise ConfigurationError(
            f"{name}: {kind} {shown(values)}: the first has to be {above}below the second"
        )
    return Range(kind, (low, high))


def _can_change(option: str) -> bool:
    """Say whether an option can change during training; those that determine the model's shape cannot."""
    return option not in SLOTS and option.partition(".")[0] not in ("model", "model_config", "adaptation")


@dataclass(frozen=True)
class SearchSpec:
    """A search's options.

    Attributes:
        path: The file.
        base: Options of every trial.
        space: Option (dotted for a method's options) → its values at the start of a trial.
        mutations: The same, for options that population based training changes.
    """

    path: Path
    base: Settings
    space: dict[str, Range]
    mutations: dict[str, Range]

    def configure(self, point: Settings, folder: Path) -> RunConfig:
        """Return the configuration of a trial.

        Args:
            point: Option → value.
            folder: The trial's folder.

        Raises:
            ConfigurationError: A value is not legal.
        """
        plain = {option: value for option, value in point.items() if "." not in option}
        dotted = [
            f"--{option.replace('_', '-')}={value if isinstance(value, str) else json.dumps(value)}"
            for option, value in point.items()
            if "." in option
        ]
        config = parse_mapping({**self.base, **plain, "output_dir": str(folder)}, dotted)
        return replace(config, save_every=config.eval_every, overwrite=True)

    @cached_property
    def metric(self) -> str:
        """The task's primary metric; for a user's task it is read from the file of training rows."""
        from glue_harness.run.mixture import MEAN
        from glue_harness.run.tasks import task_of

        config = self.configure(next(self._corners()), Path("trial"))
        return MEAN if config.several else task_of(config).primary

    @property
    def seed(self) -> int:
        """Seed for drawing configurations: the seed of the runs, if they have one."""
        return self.base.get("seed", 42)

    def as_dict(self) -> JsonObject:
        """Return plain data that is equal for equal searches."""
        parts: JsonObject = {"base": self.base}
        for part, ranges in (("space", self.space), ("mutations", self.mutations)):
            parts[part] = {option: {drawn.kind: list(drawn.values)} for option, drawn in ranges.items()}
        return json.loads(json.dumps(parts))

    def _corners(self) -> Iterator[Settings]:
        """Yield points that together cover every end and every listed value."""
        first = {option: drawn.examples()[0] for option, drawn in self.space.items()}
        for ranges in (self.space, self.mutations):
            for option, drawn in ranges.items():
                for value in drawn.examples():
                    yield {**first, option: value}

    def check(self) -> None:
        """Refuse values that no run can use.

        Raises:
            ConfigurationError: Names the option and the value.
        """
        for option in (*self.space, *self.mutations):
            if option in FIXED:
                raise ConfigurationError(
                    f"{option} is the same for all trials: move it from space to base, or leave it out"
                )
        for option in self.mutations:
            if option not in self.space:
                raise ConfigurationError(
                    f"mutations.{option} is not in space: add its first values there, e.g. "
                    f"{option}: {{choice: [16]}}"
                )
            if not _can_change(option):
                raise ConfigurationError(
                    f"mutations.{option} cannot change during training: name it in space only"
                )
        if "task" not in self.base:
            raise ConfigurationError("base has no task: name one, e.g. task: rte")
        for point in self._corners():
            self.configure(point, Path("trial"))


def _ranges(part: str, described: Settings) -> dict[str, Range]:
    named = {str(option).replace("-", "_"): described_range for option, described_range in described.items()}
    return {option: _range(f"{part}.{option}", described_range) for option, described_range in named.items()}


def read_search(path: Path) -> SearchSpec:
    """Read a search's specification.

    Args:
        path: YAML with `base` (any options of a run), `space` (option → `{uniform: [low, high]}`,
            `{loguniform: [low, high]}`, `{randint: [low, high]}` or `{choice: [values]}`) and `mutations`
            (the same for options that population based training changes; by default all that can change
            during training); `${NAME}` is read from the environment.

    Raises:
        ConfigurationError: Names the file and the value.
    """
    parts = read_specification(path, PARTS)
    try:
        if not parts["space"]:
            raise ConfigurationError("space is empty: name options and their values")
        space = _ranges("space", parts["space"])
        mutations = _ranges("mutations", parts["mutations"])
        if not mutations:
            mutations = {option: drawn for option, drawn in space.items() if _can_change(option)}
        spec = SearchSpec(path, parts["base"], space, mutations)
        spec.check()
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return spec
