"""Parameter groups whose members are clipped together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial

from torch import Tensor, nn

from finetune_common.aliases import ParamGroup
from finetune_common.arguments import explain_arguments

__all__ = ["layer_groups", "split_by_layer"]

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A number that stands between dots: a place in a list."""


@explain_arguments
def layer_groups(
    model: nn.Module, *, weight_decay: float = 0.0, pattern: str | None = None
) -> list[ParamGroup]:
    """Split a model's trainable parameters into groups that `clip="layer"` clips by their common norm.

    A layer is the outermost numbered module that repeats: another number in its place has at least half of
    its parameters' names. So the layers of a wrapped model are those of the model alone, and
    `model.0.encoder.layer.3` is one though `model.2` is a head. A numbered module without its like is a
    layer if no other is inside. A parameter outside of layers belongs to the module that holds it.

    Args:
        model: The model.
        weight_decay: For matrices; biases and norms get 0. A layer's matrices and biases are two groups with
            one label, and are clipped by one norm.
        pattern: A regular expression instead; its match at the start of a parameter's name is the layer. The
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
        [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}],
        pattern,
        [name for name, _ in model.named_parameters()],
    )
    order = {name: position for position, (name, _) in enumerate(trainable)}
    return sorted(groups, key=lambda group: order[group["params"][0][0]])


def split_by_layer(
    groups: Iterable[ParamGroup], pattern: str | None = None, names: Iterable[str] = ()
) -> list[ParamGroup]:
    """Split groups of (name, parameter) pairs by layer; a group's settings are kept.

    Args:
        groups: Parameter groups.
        pattern: See `layer_groups`.
        names: Names of further parameters of the model, such as those that do not train.

    Returns:
        The new groups, each with its `layer`.
    """
    groups, split = list(groups), list[ParamGroup]()
    named = {*names, *(name for group in groups for name, _ in group["params"])}
    layer_of = _repeating(named) if pattern is None else partial(_matching, pattern)
    for group in groups:
        layers: dict[str, list[tuple[str, Tensor]]] = {}
        for name, param in group["params"]:
            layers.setdefault(layer_of(name), []).append((name, param))
        split += [{**group, "params": params, "layer": layer} for layer, params in layers.items()]
    return split


def _matching(pattern: str, name: str) -> str:
    match = re.match(pattern, name)
    return match.group() if match else name.rpartition(".")[0]


def _repeating(names: Iterable[str]) -> Callable[[str], str]:
    """Return the function from a parameter's name to its layer, for a model with these names."""
    contents: defaultdict[str, defaultdict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in names:
        for number in _numbers(name):
            # Lists within are alike whatever their length: stages differ in depth.
            inside = NUMBER.sub("#", name[number.end() :])
            contents[name[: number.start()]][number.group()].add(inside)

    def is_layer(name: str, number: re.Match[str]) -> bool:
        entries = contents[name[: number.start()]]
        own = entries[number.group()]
        others = (other for key, other in entries.items() if key != number.group())
        repeats = any(2 * len(own & other) >= max(len(own), len(other)) for other in others)
        return repeats or not any("#." in inside for inside in own)

    def layer_of(name: str) -> str:
        ends = (number.end() for number in _numbers(name) if is_layer(name, number))
        return name[: next(ends, max(name.rfind("."), 0))]

    return layer_of


def _numbers(name: str) -> list[re.Match[str]]:
    """Return the numbers of modules in a parameter's name; one at its end is of the parameter itself."""
    return [number for number in NUMBER.finditer(name) if number.end() < len(name)]
