"""Which runs a report covers: conditions such as `task=rte|mrpc,optimizer=adamw`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.config.own_rows import FILES

__all__ = ["Condition", "flatten", "known_key", "parse_condition", "select"]

Condition = Mapping[str, Sequence[str]]
"""Key → the values that are allowed, as typed."""


def _options(prefix: str, chosen: Settings) -> JsonObject:
    """Return a method's options as one level of dotted names; a fusion's methods are below it."""
    flat: JsonObject = {}
    for key, value in chosen.items():
        if isinstance(value, Mapping):
            flat |= _options(f"{prefix}.{key}", value)
        else:
            flat[f"{prefix}.{key}"] = value
    return flat


def flatten(result: JsonObject) -> JsonObject:
    """Return a run's settings as one level of dotted names: `task`, `epochs`, `optimizer`, `optimizer.lr`, …

    If a slot has several methods, each option begins with its method's name: `gradient.agni.eta`.

    Examples:
        >>> fusion = {"name": "fusion", "lora": {"rank": 1}, "ffn": None}
        >>> flatten({"settings": {"task": "rte"}, "slots": {"adaptation": fusion}})
        {'task': 'rte', 'adaptation': 'fusion', 'adaptation.lora.rank': 1, 'adaptation.ffn': None}
    """
    flat: JsonObject = {}
    places = ("data_dir", *(FILES if "rows" in result["settings"] else ()))  # only the rows' content counts
    for key, value in {**result["settings"], **result["slots"]}.items():
        if key in places:
            continue
        choices = [value] if isinstance(value, dict) else value
        if isinstance(value, dict) and "name" not in value:  # no method: options of their own
            flat |= _options(key, value)
        elif isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
            names = [choice["name"] for choice in choices]
            flat[key] = "+".join(names)
            for place, (name, choice) in enumerate(zip(names, choices, strict=True), start=1):
                apart = f"{key}.{name}{place}" if names.count(name) > 1 else f"{key}.{name}"
                options = {option: v for option, v in choice.items() if option != "name"}
                flat |= _options(apart if len(choices) > 1 else key, options)
        else:
            flat[key] = value
    return flat


def parse_condition(option: str, text: str) -> Condition:
    """Read `key=value,key=value|value`; a list in brackets is one value.

    Args:
        option: The command-line option that had the text, for the error.
        text: The condition.

    Raises:
        ConfigurationError: A part that is not `key=value`.

    Examples:
        >>> parse_condition("--where", "task=rte|mrpc, adaptation.layers=[10,11]")
        {'task': ['rte', 'mrpc'], 'adaptation.layers': ['[10,11]']}
    """
    condition: dict[str, list[str]] = {}
    for part in re.split(r",(?![^\[]*\])", text):
        key, equals, values = part.partition("=")
        if not equals or not key.strip() or not values.strip():
            raise ConfigurationError(
                f"{option} {text}: {part.strip()!r} is no condition: write key=value, e.g. task=rte"
            )
        condition[key.strip().replace("-", "_")] = [value.strip() for value in values.split("|")]
    return condition


def known_key(option: str, key: str, runs: Iterable[Settings]) -> None:
    """Refuse a key that no run has.

    Raises:
        ConfigurationError: Names the key and the nearest ones.
    """
    known = sorted({name for flat in runs for name in flat})
    if key not in known:
        raise ConfigurationError(f"{option}: key {key!r} is unknown: {did_you_mean(key, known)}")


def _is(value: object, typed: str) -> bool:
    """Say whether a setting equals the typed value: 1e-4 is 0.0001, `none` is None."""
    if value in (None, "", []):
        return typed in ("none", "null")
    if isinstance(value, bool):
        return typed.lower() == str(value).lower()
    if isinstance(value, int | float):
        try:
            return float(typed) == value
        except ValueError:
            return False
    if isinstance(value, str):
        return typed in (value, Path(value).name)
    return yaml.safe_load(typed) == value


def matches(flat: Settings, condition: Condition) -> bool:
    """Say whether a flattened run has one of the allowed values for every key."""
    return all(
        key in flat and any(_is(flat[key], typed) for typed in allowed) for key, allowed in condition.items()
    )


def select(option: str, condition: Condition, runs: Sequence[Settings]) -> list[int]:
    """Return the positions of the flattened runs that meet a condition.

    Args:
        option: The command-line option that had the condition, for the error.
        condition: From `parse_condition`.
        runs: From `flatten`.

    Raises:
        ConfigurationError: A key that no run has, a value that no run has, or no run with all of them.
    """
    for key, allowed in condition.items():
        known_key(option, key, runs)
        present = list({str(flat[key]): flat[key] for flat in runs if key in flat}.values())
        for typed in allowed:
            if not any(_is(value, typed) for value in present):
                names = [Path(value).name if isinstance(value, str) else str(value) for value in present]
                raise ConfigurationError(
                    f"{option}: no run has {key}={typed}: {did_you_mean(typed, names or ['none'])}"
                )
    matching = [number for number, flat in enumerate(runs) if matches(flat, condition)]
    if not matching:
        wanted = " and ".join(f"{key}={'|'.join(allowed)}" for key, allowed in condition.items())
        raise ConfigurationError(f"{option}: no run has {wanted}: leave one of them out")
    return matching
