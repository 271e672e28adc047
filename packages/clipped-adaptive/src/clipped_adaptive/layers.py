"""Parameter groups whose members are clipped together."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

from finetune_common.aliases import ParamGroup
from finetune_common.arguments import explain_arguments

__all__ = ["NUMBERED", "layer_groups", "split_by_layer"]

NUMBERED = r".*?\.\d+(?=\.)"
"""The outermost numbered module of a name: `bert.encoder.layer.3`, `resnet.encoder.stages.0`."""


@explain_arguments
def layer_groups(model: nn.Module, *, weight_decay: float = 0.0, pattern: str = NUMBERED) -> list[ParamGroup]:
    """Split a model's trainable parameters into groups that `clip="layer"` clips by their common norm.

    Args:
        model: The model.
        weight_decay: For matrices; biases and norms get 0. A layer's matrices and biases are two groups with
            one label, and are clipped by one norm.
        pattern: A regular expression; its match at the start of a parameter's name is the layer. The
            blocks of transformers' ResNet are `r"resnet\\.encoder\\.stages\\.\\d+\\.layers\\.\\d+"`. Without
            a match, a parameter belongs to the module that holds it.

    Returns:
        Groups with `params` as (name, parameter) pairs, `layer` and `weight_decay`.

    Examples:
        >>> blocks = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "blocks": blocks})
        >>> for group in layer_groups(model, weight_decay=0.1):
        ...     print(group["layer"], group["weight_decay"], [name for name, _ in group["params"]])
        embed 0.1 ['embed.weight']
        blocks.0 0.1 ['blocks.0.weight']
        blocks.0 0.0 ['blocks.0.bias']
        blocks.1 0.1 ['blocks.1.weight']
        blocks.1 0.0 ['blocks.1.bias']
    """
    trainable = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    matrices = [pair for pair in trainable if pair[1].dim() >= 2]
    others = [pair for pair in trainable if pair[1].dim() < 2]
    groups = split_by_layer(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}], pattern
    )
    order = {name: position for position, (name, _) in enumerate(trainable)}
    return sorted(groups, key=lambda group: order[group["params"][0][0]])


def split_by_layer(groups: Iterable[ParamGroup], pattern: str = NUMBERED) -> list[ParamGroup]:
    """Split groups of (name, parameter) pairs by layer; a group's settings are kept.

    Args:
        groups: Parameter groups.
        pattern: See `layer_groups`.

    Returns:
        The new groups, each with its `layer`.
    """
    split: list[ParamGroup] = []
    for group in groups:
        layers: dict[str, list[tuple[str, Tensor]]] = {}
        for name, param in group["params"]:
            layers.setdefault(_layer(name, pattern), []).append((name, param))
        split += [{**group, "params": params, "layer": layer} for layer, params in layers.items()]
    return split


def _layer(name: str, pattern: str) -> str:
    match = re.match(pattern, name)
    return match.group() if match else name.rpartition(".")[0]
