"""Names for settings and other plain data, beside those of `finetune_common.aliases`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Record", "Settings"]

Settings = dict[str, Any]
"""Option → value: of a run, of a method (with its `name`), or a part of a specification."""

Record = Mapping[str, Any]
"""Settings or an object of a JSON file that is only read, such as a run's result."""
