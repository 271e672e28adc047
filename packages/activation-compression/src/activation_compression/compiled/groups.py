"""Which elements of a graph's tensor share a minimum and a step, chosen by `group_choice`."""

from __future__ import annotations

import math

from torch import fx

from activation_compression.compiled.calls import packet
from activation_compression.compiled.readings import formula_name
from activation_compression.compiled.tensors import hint_of, order_of
from activation_compression.group_choice import FAR, IMAGES, chosen
from activation_compression.grouping import Columns

__all__ = ["grouping_of"]

_IMAGES = tuple(name.lower() for name in IMAGES)


def grouping_of(root: fx.Node, groups: str, size: int) -> tuple[str, int]:
    """Return columns, rotated or neighbours, and the elements of a group.

    Args:
        root: The original tensor, not a view.
        groups: The grouping of the formulas that read it.
        size: Approximate elements of a group.
    """
    value = root.meta["val"]
    columns = hint_of(value.shape[order_of(value)[-1]]) if value.ndim else 0
    image = groups == "columns" and _image(root)
    grouping = chosen(groups, 0 if columns == math.inf else columns, hint_of(value.numel()), size, image)
    if isinstance(grouping, Columns):
        return "columns", grouping.size
    return "rotated" if grouping.rotated else "neighbours", grouping.size


def _image(node: fx.Node) -> bool:
    """Return whether a tensor comes from a convolution, element by element."""
    for _ in range(FAR):
        group = packet(node.meta.get("original_aten")) or packet(node.target)
        if formula_name(group).startswith(_IMAGES):
            return True
        if not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return False
