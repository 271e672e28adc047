"""Which elements of a saved tensor share a minimum and a step: decided by the formula that reads it.

| read by | groups | why |
| --- | --- | --- |
| a normalisation | rotated neighbours | in the residual stream single features of tokens are huge |
| a linear map, a product, a smooth function | columns | each feature has a range of its own over tokens |
| anything made by a convolution | neighbours | they are of one channel |
"""

from __future__ import annotations

import math

from torch import Tensor

from activation_compression.blocks import Layout, viewed
from activation_compression.formulas import Node
from activation_compression.grouping import Columns, Grouping, Neighbours

__all__ = ["IMAGES", "WAYS", "chosen", "grouping_of", "ways_of"]

WAYS = ("columns", "rotated", "neighbours")
"""What automatic precision chooses from."""

LEAST_ROTATED = 32
"""Elements of a group from which a rotation is worth its minimum and step."""
FAR = 4
"""Nodes between a convolution and what is taken for its image, at most."""

IMAGES = ("Convolution", "CudnnConvolution", "MkldnnConvolution", "NativeBatchNorm", "CudnnBatchNorm")
IMAGES += ("NativeGroupNorm", "MaxPool", "AvgPool", "ConvDepthwise", "BatchNormWithUpdate")


def grouping_of(tensor: Tensor, layout: Layout, count: int, groups: str, size: int) -> Grouping:
    """Return how the elements of a tensor are grouped.

    Args:
        tensor: What is saved.
        layout: How it lies on its block.
        count: Elements of the block.
        groups: What the formula that reads it says: columns, rotated or neighbours.
        size: Elements of a group, about.
    """
    image = groups == "columns" and _image(tensor)
    return chosen(groups, _features(tensor, layout, count), count, size, image)


def chosen(groups: str, columns: int, count: int, size: int, image: bool) -> Grouping:
    """Return how the elements of a block are grouped.

    Args:
        groups: columns, rotated or neighbours.
        columns: Elements of a row in memory; 0 where there are no rows.
        count: Elements of the block.
        size: Elements of a group, about.
        image: Whether the block is made by a convolution, element by element.

    Examples:
        >>> chosen("rotated", 768, 768 * 512, 256, False)
        Neighbours(size=64, rotated=True)
        >>> chosen("columns", 768, 768 * 512, 256, False), chosen("columns", 768, 768, 256, False).size
        (Columns(size=256, columns=768), 256)
    """
    if groups == "rotated":
        fitting = math.gcd(size // 4, columns) if columns else 0
        return Neighbours(fitting if fitting >= LEAST_ROTATED else max(1, size // 4), rotated=True)
    if groups == "columns" and columns > 1 and count // columns >= size // 2 and not image:
        return Columns(size, columns)
    return Neighbours(size)


def ways_of(tensor: Tensor, layout: Layout, count: int, groups: str, size: int) -> dict[str, Grouping]:
    """Return all ways to group a tensor that differ, the usual one first; arguments as for `grouping_of`."""
    ways: dict[str, Grouping] = {}
    for way in (groups, *WAYS):
        grouping = grouping_of(tensor, layout, count, way, size)
        if grouping not in ways.values():
            ways[way] = grouping
    return ways


def _features(tensor: Tensor, layout: Layout, count: int) -> int:
    """Return the length of a tensor's rows in memory; of the matrix that it is a view of, if it is one."""
    base = viewed(tensor)
    if base is not tensor and base.numel() == count and base.ndim and base.is_contiguous():
        return base.shape[-1]
    inner = [n for n, stride in zip(layout.kept, layout.strides, strict=True) if stride == 1 and n > 1]
    return inner[0] if inner and count % inner[0] == 0 else 0


def _image(tensor: Tensor) -> bool:
    """Return whether a tensor comes from a convolution, element by element."""
    node: Node | None = tensor.grad_fn
    for _ in range(FAR):
        if node is None:
            return False
        if node.name().startswith(IMAGES):
            return True
        node = node.next_functions[0][0] if node.next_functions else None
    return False
