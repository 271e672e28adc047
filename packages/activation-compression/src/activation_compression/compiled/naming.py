"""The name of a graph's tensor: the module whose forward pass makes it, and the operation."""

from __future__ import annotations

import re

from torch import fx

from activation_compression.compiled.calls import label

__all__ = ["place_of"]

PATIENCE = 8
"""Most nodes to search for one with a known module."""
_INDEX = re.compile(r"\[(?:'([^']*)'|(\d+))\]")


def place_of(node: fx.Node) -> str:
    """Return "module:operation" of a node; the module is empty outside of one.

    Examples:
        >>> node = fx.Graph().placeholder("x")
        >>> node.meta["nn_module_stack"] = {"a": ("L['self']._modules['encoder']._modules['0']", None)}
        >>> place_of(node)
        'encoder.0:input'
    """
    group = label(node.meta.get("original_aten")) or label(node.target) or node.op
    operation = group.strip("_") if node.op != "placeholder" else "input"
    return f"{module_path(_path(node))}:{operation}"


def _path(node: fx.Node) -> str:
    """Return the expression of a node's module; for a backward formula, the module of its inputs."""
    for _ in range(PATIENCE):
        if stack := node.meta.get("nn_module_stack"):
            return list(stack.values())[-1][0]
        if not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return ""


def module_path(path: str) -> str:
    """Return the name of a module from the expression by which the compiler reaches it.

    Examples:
        >>> module_path("L['self'].encoder.layer[0].output"), module_path("L['fn']._modules['head']")
        ('encoder.layer.0.output', 'head')
    """
    path = re.sub(r"^L\['\w+'\]", "", path)
    path = _INDEX.sub(lambda key: "." + (key[1] or key[2] or ""), path)
    parts = [part for part in path.split(".") if part and part not in ("_modules", "_orig_mod", "module")]
    return ".".join(parts)
