"""Decoding as graph nodes, which the compiler fuses into the kernel that reads the values.

Then no decoded copy is in memory. It requires equal groups and constant lengths; other tensors are decoded by
a separate operation (`operators`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from activation_compression.grouping import Columns
from activation_compression.kernels import on_gpu
from activation_compression.rules import decode_columns

__all__ = ["decoding", "write_out"]


def decoding(
    codes: Tensor, bits: int, grouping: Columns, sizes: Sequence[Any], dtype: torch.dtype
) -> Callable[..., Tensor] | None:
    """Return the function that decodes codes, minima and steps; None if the graph cannot hold it.

    Args:
        codes: Words of `bits` bytes, on the decoding device.
        bits: 1, 2, 4 or 8.
        grouping: How the values were packed.
        sizes: The values' lengths.
        dtype: The values' dtype.
    """
    if not all(isinstance(size, int) for size in sizes):
        return None
    groups = grouping.equal(math.prod(sizes))
    if groups is None:
        return None
    first = on_gpu(codes.device)
    shape = (groups, grouping.columns, -1) if first else (groups, -1, grouping.columns)

    def decode(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
        parts = codes.view(shape), low.view(groups, -1), step.view(groups, -1)
        return decode_columns(*parts, bits, dtype, first).view(sizes)

    return decode


def write_out(graph: fx.Graph, function: Callable[..., Tensor], *given: fx.Node) -> fx.Node:
    """Add a function's operations, one by one, at a graph's insertion point."""
    fakes: Any = [node.meta["val"] for node in given]
    with fakes[0].fake_mode:
        traced = make_fx(function, decomposition_table=select_decomp_table())(*fakes)
    known = dict(zip(traced.graph.find_nodes(op="placeholder"), given, strict=True))
    made: Any = graph.graph_copy(traced.graph, known)
    return made
