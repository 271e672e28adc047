"""Where attention and the feed-forward block of a block begin and end, and which norms belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parameter_efficient.blocks import is_experts
from parameter_efficient.flow import OUT, Flow
from parameter_efficient.forward import DOES_NOT_RUN
from parameter_efficient.typed import named_modules

__all__ = ["Edges", "SubLayer", "end_of", "norms_of", "site_of"]

Edges = Mapping[str, Mapping[str, int]]
"""Node → the nodes that it feeds → how many tokens there change with one of its own."""


@dataclass(frozen=True)
class SubLayer:
    """Attention or the feed-forward block of a block, by names of modules in it.

    Args:
        entry: Reads the sub-layer's input.
        exit: Its output is added to the residual.
        norm: The norm behind that sum; "" if norms come first.
    """

    entry: str
    exit: str
    norm: str


def norms_of(flow: Flow) -> dict[str, nn.Module]:
    """Return the modules of the block's width whose output does not change with the input's scale."""
    norms: dict[str, nn.Module] = {}
    sample = torch.randn(1, flow.tokens, flow.width, generator=torch.Generator().manual_seed(4))
    for name, module in named_modules(flow.block):
        if not name or name in flow.nodes or any(True for _ in module.children()):
            continue
        try:
            once, thrice = (flow.module(name)(factor * sample) for factor in (1.0, 3.0))
        except DOES_NOT_RUN:
            continue
        same = isinstance(once, Tensor) and once.shape == sample.shape and once.std() > 0
        if same and torch.allclose(once, thrice, rtol=1e-2, atol=1e-3) and not torch.equal(once, thrice):
            norms[name] = module
    return norms


def _inside(edges: Edges, norm: str, inside: set[str]) -> bool:
    """Return whether a norm lies inside a sub-layer, like a norm of queries."""
    return any(norm in edges.get(name, ()) for name in inside)


def site_of(
    edges: Edges, norms: list[str], entries: list[str], leaving: str, inside: set[str]
) -> tuple[SubLayer | None, list[str]]:
    """Return the sub-layer from its first matrices to its last module, and its norms."""
    read = {*entries, leaving}
    first = [
        n for n in norms if OUT not in edges[n] and read & set(edges[n]) and not _inside(edges, n, inside)
    ]
    last = leaving
    branch: list[str] = []
    for _ in range(2):
        after = [name for name in edges.get(last, {}) if name in norms or name == OUT]
        if OUT in after:
            return SubLayer(entries[0], last, ""), [*first, *branch]
        if len(after) != 1:
            break
        [norm] = after
        feeding = [name for name, reach in edges.items() if norm in reach]
        if feeding != [last]:
            return SubLayer(entries[0], last, norm), [norm]
        last, branch = norm, [norm]
    return None, []


def end_of(flow: Flow, outs: list[str], inside: set[str], outside: set[str]) -> str:
    """Return the module whose output is the sub-layer's: its last matrix, or the smallest one with all."""
    if len(outs) == 1 and not is_experts(flow.nodes[outs[0]]):
        return outs[0]
    parts = [name.split(".") for name in [*outs, *inside]]
    common: list[str] = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    name = ".".join(common)
    return "" if any(other.startswith(f"{name}.") for other in outside) or not name else name
