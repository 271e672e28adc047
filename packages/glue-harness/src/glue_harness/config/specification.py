"""Reading YAML files in general, and specifications of sweeps and searches."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean, shown

__all__ = ["read_specification", "read_yaml"]

KINDS = {dict: "mapping", list: "list", str: "word"}

OF_THE_COMMAND = {
    "offline": "set HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 in the environment",
    "overwrite": "to repeat a run, remove its folder",
}
"""Options that only `run` has → what to do instead in a specification."""


def read_yaml(path: Path, option: str, remedy: str) -> object:
    """Return the content of a YAML file.

    Args:
        path: The file.
        option: Begins an error message: the option that named the file, or nothing.
        remedy: What to give instead of an unreadable file.

    Raises:
        ConfigurationError: Names the file and what is wrong.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{option}{path}: {error.strerror}: {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{option}{path}: not YAML: {' '.join(str(error).split())}") from None


def _expand_variables(value: object, path: Path) -> object:
    """Replace `${NAME}` by the environment's value, so that a specification works on every machine."""
    if isinstance(value, dict):
        return {key: _expand_variables(inner, path) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand_variables(inner, path) for inner in value]
    if isinstance(value, str):
        for name in re.findall(r"\$\{(\w+)\}", value):
            if name not in os.environ:
                raise ConfigurationError(
                    f"{path}: {shown(value)}: the environment variable {name} is not set: set it first"
                )
        return re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], value)
    return value


def read_specification(
    path: Path, parts: Mapping[str, type], choose: Callable[[Settings], Settings] = dict
) -> JsonObject:
    """Read a specification; missing parts are empty.

    Args:
        path: A YAML file; `${NAME}` in it is read from the environment.
        parts: Key → whether it is a `dict`, a `list` or a `str`.
        choose: Changes the specification before variables are read; those in removed parts need not be set.

    Raises:
        ConfigurationError: Names the file and the key.
    """
    spec = read_yaml(path, "", "give a specification's YAML file")
    if not isinstance(spec, dict):
        raise ConfigurationError(f"{path}: expected a mapping with {', '.join(parts)}")
    if unknown := [key for key in spec if key not in parts]:
        raise ConfigurationError(
            f"{path}: key {unknown[0]!r} is unknown: {did_you_mean(str(unknown[0]), parts)}"
        )
    for key, kind in parts.items():
        if not isinstance(spec.get(key) or kind(), kind):
            raise ConfigurationError(f"{path}: {key}={shown(spec[key])} has to be a {KINDS[kind]}")
    spec = choose(spec)
    expanded = {key: _expand_variables(spec.get(key) or kind(), path) for key, kind in parts.items()}
    for key, part in expanded.items():
        for options in part if isinstance(part, list) else [part] if isinstance(part, dict) else []:
            for option, remedy in OF_THE_COMMAND.items():
                if option in options:
                    raise ConfigurationError(f"{path}: {key}: {option} only works in run: {remedy}")
    return expanded
