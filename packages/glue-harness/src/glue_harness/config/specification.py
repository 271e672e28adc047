"""Reading YAML files in general, and specifications of sweeps and searches."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from finetune_common.aliases import JsonObject, Settings
from finetune_common.errors import ConfigurationError, did_you_mean, shown

__all__ = ["load_yaml", "read_specification", "read_yaml"]

MERGE = "tag:yaml.org,2002:merge"
"""The tag of the key `<<`, which takes over another mapping's keys."""

KINDS = {dict: "mapping", list: "list", str: "word"}

OF_THE_COMMAND = {
    "offline": "set HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 in the environment",
    "overwrite": "to repeat a run, remove its folder",
}
"""Options that only `run` has → what to do instead in a specification."""


class _Loader(yaml.SafeLoader):
    """Refuses what a reader of the file would overlook: a key given twice, and an alias within its anchor."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        node = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:  # it has its end once it is complete
            raise ComposerError(None, None, "an alias (*) within what its anchor (&) names", node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = key.tag, str(key.value)
            if name in keys and key.tag != MERGE:
                raise ComposerError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            keys.add(name)
        return node


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text that a user may have written.

    Raises:
        YAMLError: It is not YAML, or more than plain data, or a key is given twice.

    Examples:
        >>> load_yaml("{<<: {seed: 1, epochs: 2}, seed: 3}")
        {'seed': 3, 'epochs': 2}
        >>> load_yaml("{seed: 1, seed: 3}")
        Traceback (most recent call last):
        yaml.composer.ComposerError: key 'seed' is given twice
          in "<unicode string>", line 1, column 11:
            {seed: 1, seed: 3}
                      ^
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("too many levels, one within another") from None


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
        return load_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{option}{path}: {error.strerror}: {remedy}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"{option}{path}: cannot be read as YAML: {reason}") from None


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
