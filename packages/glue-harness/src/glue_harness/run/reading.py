"""Reading the files of a run; what cannot be read is refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import yaml

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError
from glue_harness.config.specification import load_yaml

__all__ = ["SCHEMA", "read_file", "read_settings", "result_in"]

T = TypeVar("T")

SCHEMA = 1
"""Version of `result.json`."""


def read_file(file: Path, parse: Callable[[str], T]) -> T:
    """Parse the text of a run's file; a failure means that the file is damaged."""
    try:
        return parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}: give the folder of a run") from None
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(repr(error).split())[:120]
        raise ConfigurationError(
            f"{file} is damaged ({reason}): start anew with --overwrite, or remove it"
        ) from None


def read_settings(folder: Path) -> JsonObject:
    """Return the content of a run's `config.yaml`."""
    return read_file(folder / "config.yaml", lambda text: {**load_yaml(text)})


def result_in(text: str) -> JsonObject:
    """Return the content of `result.json`; it must have this schema and all that a report needs."""
    result = json.loads(text)
    if result["schema"] != SCHEMA:
        raise ValueError(f"schema {result['schema']} is not {SCHEMA}")
    for key in ("task", "model", "seed", "slots", "settings", "primary", "metrics", "history"):
        result[key]
    for when in ("last", "best"):
        if not math.isfinite(score := result["metrics"][when][result["primary"]]):
            raise ValueError(f"{result['primary']} is {score}")
    return result
