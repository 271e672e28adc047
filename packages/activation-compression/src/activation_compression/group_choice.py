"""Which elements of a saved tensor share a minimum and a step: decided by the formula that reads it.

| read by | groups | why |
| --- | --- | --- |
| a normalisation | rotated neighbours | in the residual stream single features of single tokens are huge |
| a linear map, a product, a smooth function | columns | each feature has its own range over tokens |
| anything made by a convolution | neighbours | they belong to one channel |
"""

from __future__ import annotations

import math

from torch import Tensor

from activation_compression.blocks import Layout, viewed
from activation_compression.grouping import Columns, Grouping, Neighbours
from activation_compression.nodes import node_of

__all__ = ["IMAGES", "WAYS", "chosen", "grouping_of", "ways_of"]

WAYS = ("columns", "rotated", "neighbours")
"""The groups that automatic precision chooses from."""

LEAST = 8
"""Elements of a group below which its minimum and step take as much memory as exact values."""
LEAST_ROTATED = 32
"""Smallest group to rotate: smaller ones cost more in minima and steps than they gain."""
FAR = 4
"""Most nodes between a convolution and a tensor that counts as its image."""

IMAGES = (
    *("Convolution", "CudnnConvolution", "MkldnnConvolution", "NativeBatchNorm", "CudnnBatchNorm"),
    *("NativeGroupNorm", "MaxPool", "AvgPool", "ConvDepthwise", "BatchNormWithUpdate"),
)
"""Beginnings of the names of nodes that make images."""


def grouping_of(tensor: Tensor, layout: Layout, count: int, groups: str, size: int) -> Grouping:
    """Return how the elements of a tensor are grouped.

    Args:
        tensor: The saved tensor.
        layout: Where its elements are in the block.
        count: Elements of the block.
        groups: The groups of the formula that reads it: columns, rotated or neighbours.
        size: Approximate elements of a group.
    """
    image = groups == "columns" and _image(tensor)
    return chosen(groups, _features(tensor, layout, count), count, size, image)


def chosen(groups: str, columns: int, count: int, size: int, image: bool) -> Columns | Neighbours:
    """Return how the elements of a block are grouped.

    Args:
        groups: columns, rotated or neighbours.
        columns: Elements of a row in memory; 0 if there are no rows.
        count: Elements of the block.
        size: Approximate elements of a group.
        image: Whether the block is made by a convolution, element by element.

    Examples:
        >>> chosen("rotated", 768, 768 * 512, 256, False)
        Neighbours(size=64, rotated=True)
        >>> chosen("columns", 768, 768 * 512, 256, False), chosen("columns", 768, 768, 256, False).size
        (Columns(size=256, columns=768), 256)
    """
    if groups == "rotated":
        fitting = math.gcd(size // 4, columns) if columns else 0
        few = max(min(size, LEAST), size // 4)
        return Neighbours(fitting if fitting >= LEAST_ROTATED else few, rotated=True)
    if groups == "columns" and columns > 1 and count // columns >= size // 2 and not image:
        return Columns(size, columns)
    return Neighbours(size)


def ways_of(tensor: Tensor, layout: Layout, count: int, groups: str, size: int) -> dict[str, Grouping]:
    """Return all different ways to group a tensor, the usual one first; arguments as for `grouping_of`."""
    ways: dict[str, Grouping] = {}
    for way in (groups, *WAYS):
        grouping = grouping_of(tensor, layout, count, way, size)
        if grouping not in ways.values():
            ways[way] = grouping
    return ways


def _features(tensor: Tensor, layout: Layout, count: int) -> int:
    """Return the length of a tensor's rows in memory; of a view, that of the tensor's base."""
    base = viewed(tensor)
    if base is not tensor and base.numel() == count and base.ndim and base.is_contiguous():
        return base.shape[-1]
    inner = [n for n, stride in zip(layout.distinct, layout.strides, strict=True) if stride == 1 and n > 1]
    return inner[0] if inner and count % inner[0] == 0 else 0


def _image(tensor: Tensor) -> bool:
    """Return whether a tensor comes from a convolution, element by element."""
    node = node_of(tensor)
    for _ in range(FAR):
        if node is None:
            return False
        if node.name().startswith(IMAGES):
            return True
        node = node.next_functions[0][0] if node.next_functions else None
    return False
