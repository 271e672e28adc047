"""What a run's parts report of a step, as entries of `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError

__all__ = ["OF_THE_RUN", "observed"]

OF_THE_RUN = ("step", "loss", "learning_rate")
"""Keys of an entry that are the run's own."""


def observed(parts: Mapping[str, Any], step: int) -> JsonObject:
    """Return what the parts report of a step (`finetune_common.slots.Part.on_step`), as data for JSON.

    Args:
        parts: By name.
        step: Number of the step that is done.

    Raises:
        ConfigurationError: A key of the run's own, or a value that is no data; names the part and the key.

    Examples:
        >>> import numpy as np
        >>> import torch
        >>> class Norm:
        ...     def on_step(self, step):
        ...         return {"norm": torch.tensor(0.5), "sizes": {"largest": np.int64(3)}}
        >>> observed({"monitor.0": Norm(), "adaptation": object()}, 1)
        {'norm': 0.5, 'sizes': {'largest': 3}}
    """
    found: JsonObject = {}
    for name, part in parts.items():
        for key, value in (part.on_step(step) if hasattr(part, "on_step") else {}).items():
            if key in OF_THE_RUN:
                raise ConfigurationError(f"{name}: on_step returns {key!r}, a key of the run: rename it")
            try:
                found[key] = json.loads(json.dumps(value, default=_data))
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"{name}: on_step returns for {key!r} what JSON cannot hold ({error}): return numbers, "
                    "text, and lists and dicts of them"
                ) from None
    return found


def _data(value: Any) -> object:
    """Return a tensor or an array as numbers."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"a value of class {type(value).__name__}")
    return value.tolist()
