"""Whether settings match a pattern: conditions of a specification, and runs behind published numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.config.fields import DEFAULTS, LIST_SLOTS, SLOTS
from glue_harness.config.parsing import as_choices, options_of

__all__ = ["check_keys", "covers", "nested", "whole"]


def covers(pattern: object, value: object) -> bool:
    """Say whether settings match a pattern.

    A pattern may leave out keys, name a method without its options, and name one element of a list. A number
    may be written as text, since YAML reads 2e-5 as text.

    Examples:
        >>> covers({"optimizer": {"lr": 0.1}}, {"optimizer": {"name": "sgd", "lr": 0.1}, "seed": 1})
        True
        >>> covers({"optimizer": "sgd"}, {"optimizer": {"name": "sgd", "lr": 0.1}}), covers("2e-5", 0.00002)
        (True, True)
        >>> covers({"epochs": 15}, {"epochs": [0, 15]}), covers({"epochs": [15]}, {"epochs": [0, 15]})
        (True, False)
    """
    if isinstance(value, Mapping):
        if isinstance(pattern, Mapping):
            return all(key in value and covers(inner, value[key]) for key, inner in pattern.items())
        return value.get("name") == pattern
    if isinstance(value, list):
        if isinstance(pattern, list):
            return len(pattern) == len(value) and all(map(covers, pattern, value))
        return any(covers(pattern, element) for element in value) or (not value and pattern in (None, "none"))
    return pattern == value or _number(pattern) == _number(value) is not None


def _number(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except ValueError:
        return None


def nested(pattern: Settings) -> JsonObject:
    """Return a pattern with a method's options inside its slot, and names as fields have them.

    Examples:
        >>> nested({"optimizer.lr": 0.1, "optimizer.name": "sgd", "batch-size": 8})
        {'optimizer': {'lr': 0.1, 'name': 'sgd'}, 'batch_size': 8}
    """
    inside: JsonObject = {}
    for key, value in pattern.items():
        first, dot, rest = str(key).replace("-", "_").partition(".")
        if dot:
            value = nested({rest: value})
            before = inside.get(first, {})
            value = {**({"name": before} if isinstance(before, str) else before), **value}
        inside[first] = value
    return inside


def whole(settings: Settings) -> JsonObject:
    """Return a run's settings as a specification has them, with the defaults of what it leaves out.

    Examples:
        >>> run = whole({"task": "rte", "optimizer": {"name": "sgd", "lr": 0.1}})
        >>> run["optimizer"]["momentum"], run["epochs"], run["gradient"]
        (0.9, 3.0, [])
    """
    run = {**DEFAULTS, **SLOTS, **nested(settings)}
    for slot in SLOTS:
        chosen = [{**options_of(slot, given["name"]), **given} for given in as_choices(slot, run[slot])]
        run[slot] = chosen if slot in LIST_SLOTS else chosen[0]
    return run


def check_keys(where: str, pattern: Settings, runs: Iterable[Settings]) -> None:
    """Refuse a pattern with a key that no run has: it would match nothing, without a word.

    Args:
        where: The option or the part of a file that has the pattern, for the error.
        pattern: From `nested`.
        runs: From `whole`.

    Raises:
        ConfigurationError: Names the key and the nearest ones.
    """
    known = {name for run in runs for name in _names(run)}
    for key in _names(pattern):
        if key not in known:
            raise ConfigurationError(f"{where}: key {key!r} is unknown: {did_you_mean(key, sorted(known))}")


def _names(settings: Settings) -> Iterator[str]:
    """Yield each key, and each of a mapping's below it as `optimizer.lr`."""
    for key, value in settings.items():
        yield key
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Mapping):
                yield from (f"{key}.{name}" for name in _names(inner))
