"""Names for types that many modules use; nothing here imports torch at run time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = ["JsonObject", "ParamGroup", "Rows", "Settings", "StateDict", "is_sharded"]

StateDict: TypeAlias = dict[str, Any]
"""Tensors and plain data by name, as `state_dict()` returns them."""

ParamGroup: TypeAlias = dict[str, Any]
"""A parameter group of an optimizer: `params` and settings by name."""

Settings: TypeAlias = Mapping[str, Any]
"""Values of settings or keyword arguments by name; each has a type of its own. They are only read."""

JsonObject: TypeAlias = dict[str, Any]
"""Plain data by name, as JSON and YAML files hold it: a result, a report, options that are filled in."""

Rows: TypeAlias = dict[str, list[Any]]
"""Rows of data as column → values: text, numbers, lists, or None where a file holds nothing."""


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Say whether a tensor is a DTensor, which spreads one tensor over processes.

    Only the attribute is asked: importing DTensor takes seconds.

    Examples:
        >>> import torch
        >>> is_sharded(torch.ones(2))
        False
    """
    return hasattr(tensor, "placements")
