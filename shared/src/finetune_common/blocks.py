"""The blocks that a model repeats, found by its structure."""

from __future__ import annotations

from torch import nn

__all__ = ["find_blocks"]


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that a model repeats: the outermost lists of two or more modules of one class.

    If there are none, lists of one module count, as in a model with one layer. A list of lists is no list of
    blocks: nobody calls its members; theirs are looked at.

    Examples:
        >>> import torch
        >>> layers = [torch.nn.Linear(4, 4) for _ in range(3)]
        >>> len(find_blocks(torch.nn.Sequential(torch.nn.ModuleList(layers))))
        3
    """
    return _outermost(model, (nn.ModuleList, nn.Sequential), 2) or _outermost(model, (nn.ModuleList,), 1)


def _outermost(model: nn.Module, kinds: tuple[type, ...], least: int) -> list[nn.Module]:
    if isinstance(model, (nn.ModuleList, nn.Sequential)) and isinstance(model, kinds) and len(model) >= least:
        blocks = list(dict.fromkeys(model))
        callable_alike = len(set(map(type, blocks))) == 1 and not isinstance(blocks[0], nn.ModuleList)
        if callable_alike and any(True for _ in blocks[0].parameters()):
            return blocks
    return [block for child in model.children() for block in _outermost(child, kinds, least)]
