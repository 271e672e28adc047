"""The file of a checkpoint's state: tensors and plain data, which load without running anyone's code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from finetune_common.aliases import StateDict
from finetune_common.errors import ConfigurationError

__all__ = ["read_state", "write_state"]

REFUSED = (pickle.PickleError, AttributeError, TypeError)
"""What writing and reading raise for an object that is neither a tensor nor plain data."""


def write_state(state: StateDict, file: Path) -> None:
    """Write state that `read_state` reads.

    Args:
        state: Part of a run → its state.
        file: The new file.

    Raises:
        ConfigurationError: A part has state that could not be read back; names it.
    """
    try:
        with file.open("wb") as content:  # given a path, torch's errors lack the reason
            torch.save(dict(state), content)
        read_state(file, mmap=True)  # reads no tensor, so that it costs nothing
    except REFUSED:
        if (place := _refused(state)) is None:
            raise
        raise ConfigurationError(
            f"the state of {place} could not be loaded again: let its state_dict() return only tensors, "
            "numbers, text and truth values, and lists, tuples and dicts of them"
        ) from None


def read_state(file: Path | io.BytesIO, mmap: bool = False) -> StateDict:
    """Return the state in a file, on the CPU.

    Args:
        file: From `write_state`.
        mmap: Read a tensor only when it is used.
    """
    return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)


def _refused(value: Any, name: str = "") -> str | None:
    """Return where the innermost value is that cannot be read back, and its kind; None if there is none."""
    content = io.BytesIO()
    try:
        torch.save(value, content)
        content.seek(0)
        read_state(content)
    except REFUSED:
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            inner = list(value.items())
        elif isinstance(value, list | tuple):
            inner = list(enumerate(value))
        places = (_refused(part, f"{name}.{key}".lstrip(".")) for key, part in inner)
        return next((place for place in places if place), f"{name} ({type(value).__name__})")
    return None
