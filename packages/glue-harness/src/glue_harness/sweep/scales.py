"""One specification at several scales: how a scale changes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.config.fields import SLOTS

__all__ = ["SMOKE", "at_scale", "changed"]

CHANGES = ("base", "defaults", "grid", "cases", "where", "exclude", "one_of_each", "keep")

WRITTEN = "paper"
"""The scale that leaves a specification as it is written."""

SMOKE: Settings = {
    "one_of_each": True,
    "base": {
        **{"task": "demo-entailment", "model": "demo", "data_dir": None, "seed": 41, "epochs": 1},
        **{"max_steps": 4, "max_train_samples": 128, "max_length": 32, "eval_every": None},
        **{"hold_out": None, "evaluate_on": None},
    },
}
"""The change made by the scale `smoke`: one run of each method, four steps of a tiny model."""


def at_scale(spec: Settings, scale: str | None) -> JsonObject:
    """Return a specification at a scale.

    Args:
        spec: As in the file; its `scales` hold name → change (see `changed`).
        scale: A name in `scales`; `smoke`, which any specification has; `paper` or None for the
            specification as it is written.

    Raises:
        ConfigurationError: A scale that the specification does not have.

    Examples:
        >>> spec = {"base": {"epochs": 3}, "scales": {"cpu": {"base": {"epochs": 1}}}}
        >>> at_scale(spec, "cpu"), at_scale(spec, None)
        ({'base': {'epochs': 1}}, {'base': {'epochs': 3}})
    """
    scales = spec.get("scales") or {}
    written = {key: value for key, value in spec.items() if key != "scales" and value}
    if scale == "smoke":
        smoke = scales.get(scale) or {}
        return changed(written, {**SMOKE, **smoke, "base": {**SMOKE["base"], **(smoke.get("base") or {})}})
    if scale in scales:
        return changed(written, scales[scale])
    if scale in (None, WRITTEN):
        return written
    known = [*scales, "smoke", WRITTEN]
    raise ConfigurationError(f"--scale {scale} is unknown: {did_you_mean(str(scale), known)}")


def _kind(option: str, value: object) -> object:
    """Name the method that a slot's value chooses; None for values of other options."""
    if isinstance(value, list):
        return tuple(_kind(option, inner) for inner in value)
    if isinstance(value, Mapping):
        return value.get("name")
    return value if option in SLOTS else None


def _one_of_each(option: str, values: Sequence[object]) -> list[object]:
    """Keep the first value of each method."""
    return list({repr(_kind(option, value)): value for value in reversed(values)}.values())[::-1]


def _one_case_of_each(cases: Sequence[Settings]) -> list[Settings]:
    kinds = {repr([_kind(*setting) for setting in case.items()]): case for case in reversed(cases)}
    return list(kinds.values())[::-1]


def changed(spec: Settings, change: Settings) -> JsonObject:
    """Return a sweep's specification as a scale changes it.

    Args:
        spec: `base`, `grid`, `cases` and `exclude` as in the file of a sweep.
        change: `base` sets options and removes them from the grid's axes and the cases; `defaults`
            sets options that axes and cases may still override; `grid` sets axes; `cases` replaces the
            cases; `where` and `exclude` replace these lists; `keep` says which models are kept; `one_of_each`
            keeps the first value of each method on every axis and the first case of each method.

    Raises:
        ConfigurationError: Another key.

    Examples:
        >>> spec = {"base": {"epochs": 3}, "grid": {"task": ["rte", "mrpc"], "seed": [1, 2]}}
        >>> changed(spec, {"base": {"task": "sst2"}, "grid": {"seed": [1]}})
        {'base': {'epochs': 3, 'task': 'sst2'}, 'grid': {'seed': [1]}}
    """
    if unknown := [key for key in change if key not in CHANGES]:
        raise ConfigurationError(
            f"scales: key {unknown[0]!r} is unknown: {did_you_mean(unknown[0], CHANGES)}"
        )
    fixed = change.get("base") or {}
    single = change.get("one_of_each")

    def left(axes: Settings | None) -> JsonObject:
        remaining = {axis: v for axis, v in (axes or {}).items() if axis.partition(".")[0] not in fixed}
        return {axis: _one_of_each(axis, values) if single else values for axis, values in remaining.items()}

    grid = left(spec.get("grid"))
    cases = [
        {key: left(value) if key == "grid" else value for key, value in case.items() if key not in fixed}
        for case in spec.get("cases") or []
    ]
    if single:
        cases = _one_case_of_each(cases)
    new = {
        "base": {**(spec.get("base") or {}), **(change.get("defaults") or {}), **fixed},
        "grid": {**grid, **(change.get("grid") or {})},
        "cases": change.get("cases") or cases,
        "where": [
            {"if": rule["if"], "then": {key: v for key, v in rule["then"].items() if key not in fixed}}
            for rule in change.get("where", spec.get("where")) or []
        ],
        "exclude": change.get("exclude", spec.get("exclude")),
        "keep": change.get("keep") or spec.get("keep"),
    }
    return {key: value for key, value in new.items() if value}
