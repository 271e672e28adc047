"""Where a model keeps its blocks, and which modules in them multiply by a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from parameter_efficient.typed import named_modules

__all__ = [
    "Stack",
    "each_once",
    "find_stacks",
    "is_experts",
    "is_projection",
    "is_transposed",
    "matrices_of",
    "twins",
    "width_out",
]

FEWEST = 4
"""Fewest matrices in a block: q, k and v in one, o, and two of the feed-forward block."""


def is_experts(module: nn.Module) -> bool:
    """Return whether a module holds the matrices of several experts, stacked."""
    stacked = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    return len(stacked) > 1 and len(set(stacked)) == 1


def is_projection(module: nn.Module) -> bool:
    """Return whether a module multiplies by a matrix: `nn.Linear`, quantised or not, `Conv1D`, stacked."""
    if isinstance(getattr(module, "out_features", None), int) and hasattr(module, "in_features"):
        return True
    parameters = dict(module.named_parameters(recurse=False))
    weight = parameters.get("weight")
    if type(module).__name__ == "Conv1D":
        return True
    return weight is not None and weight.ndim == 3 and not isinstance(module, nn.Conv1d | nn.ConvTranspose1d)


def is_transposed(module: nn.Module) -> bool:
    """Return whether a projection keeps its matrix as (inputs, outputs), as `Conv1D` does."""
    return hasattr(module, "nf")


def width_out(module: nn.Module) -> int:
    """Return the number of features that a projection outputs."""
    for name in ("out_features", "nf"):
        if isinstance(features := getattr(module, name, None), int):
            return features
    return dict(module.named_parameters(recurse=False))["weight"].shape[1]


def matrices_of(block: nn.Module) -> dict[str, nn.Module]:
    """Return the projections and stacked experts in a block, by their names in it."""
    return {name: m for name, m in named_modules(block) if is_projection(m) or is_experts(m)}


def twins(block: nn.Module, name: str) -> Iterator[str]:
    """Yield the names that a module or parameter of an expert has in the other experts.

    Experts are the children of one module, all of one class (but for those without parameters, as dropout);
    each holds matrices, and is none itself.

    Examples:
        >>> a, b = (nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)}) for _ in range(2))
        >>> list(twins(nn.ModuleDict({"a": a, "b": b}), "a.down"))
        ['b.down']
    """
    parts = name.split(".")
    for depth, own in enumerate(parts[:-1]):
        around = block.get_submodule(".".join(parts[:depth]))
        beside = {n: child for n, child in around.named_children() if any(True for _ in child.parameters())}
        matrices = matrices_of(beside[own])
        if len({type(child) for child in beside.values()}) == 1 and matrices and "" not in matrices:
            yield from (".".join([*parts[:depth], n, *parts[depth + 1 :]]) for n in beside if n != own)


def each_once(named: Iterable[tuple[str, nn.Module]]) -> dict[str, nn.Module]:
    """Return modules by name, each by its first one."""
    names: dict[nn.Module, str] = {}
    for name, module in named:
        names.setdefault(module, name)
    return {name: module for module, name in names.items()}


@dataclass
class Stack:
    """A list of equal blocks that follow each other.

    Args:
        container: Name of the module that holds the list, or the list of lists.
        attribute: Name of that list in it.
        blocks: The blocks, by their names in the model, in order; one that is listed twice has one name.
    """

    container: str
    attribute: str
    blocks: dict[str, nn.Module]


def _flat(name: str, entry: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield an entry of a list, or the blocks of a list that it holds."""
    inner = [
        (n, m) for n, m in named_modules(entry) if isinstance(m, nn.ModuleList) and len(m) and _alike(list(m))
    ]
    if not inner:
        yield name, entry
    for prefix, modules in inner:
        for number, module in enumerate(modules):
            yield from _flat(".".join(part for part in (name, prefix, str(number)) if part), module)


def _alike(modules: list[nn.Module]) -> bool:
    """Return whether modules are blocks of one class that are large enough for attention and feed-forward."""
    return len({type(m) for m in modules}) == 1 and all(len(matrices_of(m)) >= FEWEST for m in modules)


def find_stacks(model: nn.Module) -> list[Stack]:
    """Return the lists of equal blocks of a model, the one with most parameters first.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> [stack] = find_stacks(BertModel(BertConfig(num_hidden_layers=2, **sizes)))
        >>> list(stack.blocks)
        ['encoder.layer.0', 'encoder.layer.1']
    """
    stacks: list[Stack] = []
    for name, modules in named_modules(model):
        inside = any(name.startswith(f"{block}.") for stack in stacks for block in stack.blocks)
        within = any(name.startswith(f"{s.container}.{s.attribute}.".lstrip(".")) for s in stacks)
        if not isinstance(modules, nn.ModuleList) or not len(modules) or inside or within:
            continue
        entries = list(modules)
        nested = all(isinstance(entry, nn.ModuleList) for entry in entries)
        if nested or _alike(entries):
            pairs = [pair for n, m in enumerate(entries) for pair in _flat(f"{name}.{n}", m)]
            if pairs and _alike([module for _, module in pairs]):
                container, _, attribute = name.rpartition(".")
                stacks.append(Stack(container, attribute, each_once(pairs)))
    return sorted(stacks, key=lambda s: -sum(p.numel() for m in s.blocks.values() for p in m.parameters()))
