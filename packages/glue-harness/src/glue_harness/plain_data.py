"""Names for data whose keys vary: settings, objects of JSON files, tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Json", "Record", "Settings", "Tensors"]

Settings = dict[str, Any]
"""Option → value: of a run, of a method (with its `name`), or a part of a specification."""

Json = dict[str, Any]
"""An object of a JSON file."""

Record = Mapping[str, Any]
"""Settings or an object of a JSON file that is only read, such as a run's result."""

Tensors = dict[str, Any]
"""Tensors by name, and plain data beside them: a batch, or the state in a checkpoint."""
