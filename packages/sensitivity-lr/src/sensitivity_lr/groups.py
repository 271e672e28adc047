"""Which parameters SAGE acts on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import cast

from torch import nn

# The base of all convolutions has no public name.
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from finetune_common.aliases import ParamGroup
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError

__all__ = ["sage_names", "sage_param_groups"]


@explain_arguments
def sage_names(model: nn.Module, pattern: str | None = None) -> list[str]:
    """Return the names of the trainable parameters that SAGE acts on.

    Without a pattern these are the weights and biases of the linear maps inside the numbered layers of the
    model, whichever class of module holds them: a weight of two or more dimensions, the matrix of a module
    that holds no other, or several matrices of which one at least is a stack, such as those of experts. What
    a parametrization makes a weight from counts as the weight. Layers are the members of a ModuleList, and
    numbered blocks that repeat, as in a Sequential. In models like BERT these are the query, key, value,
    attention-output and feed-forward matrices, as in the released code. Embeddings, norms, convolutions, the
    pooler and the head are left out.

    Args:
        model: The model.
        pattern: A regular expression that selects parameters by name instead (`re.search`).

    Raises:
        ConfigurationError: No trainable parameter matches.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
        >>> model = nn.Sequential(nn.Embedding(9, 8), nn.ModuleList([layer]), nn.Linear(8, 2))
        >>> sage_names(model, r"linear1")
        ['1.0.linear1.weight', '1.0.linear1.bias']
    """
    trainable = [name for name, param in model.named_parameters() if param.requires_grad]
    if pattern is not None:
        chosen = [name for name in trainable if re.search(pattern, name)]
    else:
        inside = {id(param) for layer in _layers(model) for param in _linear_parameters(layer)}
        chosen = [
            name for name, param in model.named_parameters() if param.requires_grad and id(param) in inside
        ]
    if not chosen:
        criterion = f"the pattern {pattern!r}" if pattern is not None else "'linear maps in numbered layers'"
        examples = ", ".join(trainable[:3]) or "none"
        raise ConfigurationError(
            f"no trainable parameter matches {criterion}: pass a pattern that matches some (the first are: "
            f"{examples})"
        )
    return chosen


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """Return the modules with a number for a name: any in a ModuleList, elsewhere blocks that repeat.

    A Sequential holds what comes before the blocks and after them too. A block joins several modules with
    parameters, and has another one of its class beside it.
    """
    for module in model.modules():
        numbered = [child for name, child in module.named_children() if name.isdecimal()]
        kinds = Counter(type(child) for child in numbered if len(_with_parameters(child)) > 1)
        if not isinstance(module, ParametrizationList):
            listed = isinstance(module, nn.ModuleList)
            yield from (child for child in numbered if listed or kinds[type(child)] > 1)


def _with_parameters(module: nn.Module) -> list[nn.Module]:
    own = (inside for inside in module.modules() if any(True for _ in inside.parameters(recurse=False)))
    return [inside for inside in own if not isinstance(inside, ParametrizationList)]


def _linear_parameters(layer: nn.Module) -> list[nn.Parameter]:
    lists = [module for module in layer.modules() if isinstance(module, ParametrizationList)]
    of_owners = {inside for parametrizations in lists for inside in parametrizations.modules()}
    return [
        param
        for module in layer.modules()
        if module not in of_owners and _is_linear_map(module)
        for param in _own(module).values()
    ]


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's own parameters by name, and those from which a parametrization computes one."""
    own = dict(module.named_parameters(recurse=False))
    if is_parametrized(module):
        own |= cast("nn.ModuleDict", module.parametrizations).named_parameters()
    return own


def _is_linear_map(module: nn.Module) -> bool:
    """Whether a module multiplies by matrices of its own, and is neither a table nor a convolution.

    torch's modules call such a matrix a weight (`weight`, `in_proj_weight`). Others hold several, one at
    least in a stack: experts, or heads. A module that holds no other has a matrix to multiply by, whatever
    its name, except a bias. What is left is something beside the maps, such as a bias for each distance.
    """
    if isinstance(module, nn.Embedding | nn.EmbeddingBag | _ConvNd):
        return False
    own = [(name, p.shape) for name, p in _own(module).items() if p.ndim >= 2]
    # A vector may have further dimensions of size 1, to be multiplied by element.
    matrices = {name: shape for name, shape in own if len(shape) == 2 or min(shape[-2:]) > 1}
    stacked = len(matrices) > 1 and any(len(shape) > 2 for shape in matrices.values())
    holds_none = all(name == "parametrizations" for name, _ in module.named_children())
    alone = holds_none and any(min(shape) > 1 and "bias" not in name for name, shape in matrices.items())
    return stacked or alone or any("weight" in name for name in matrices)


@explain_arguments
def sage_param_groups(
    model: nn.Module, *, weight_decay: float = 0.01, pattern: str | None = None
) -> list[ParamGroup]:
    """Split a model's trainable parameters into groups with and without SAGE.

    Args:
        model: The model.
        weight_decay: Weight decay of the matrices; biases and norms get 0.
        pattern: Which parameters SAGE acts on; see `sage_names`.

    Returns:
        At most four groups for an optimizer of this package, each with `params` as (name, parameter) pairs,
        `sage` and `weight_decay`.

    Raises:
        ConfigurationError: No trainable parameter matches.

    Examples:
        >>> layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16)
        >>> model = nn.Sequential(nn.Embedding(9, 8), nn.ModuleList([layer]), nn.Linear(8, 2))
        >>> for group in sage_param_groups(model):
        ...     print(group["sage"], group["weight_decay"], len(group["params"]))
        True 0.01 4
        True 0.0 4
        False 0.01 2
        False 0.0 5
    """
    chosen = set(sage_names(model, pattern))
    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {
        (sage, decays): [] for sage in (True, False) for decays in (True, False)
    }
    for name, param in model.named_parameters():
        if param.requires_grad:
            groups[name in chosen, param.dim() >= 2].append((name, param))
    return [
        {"params": params, "sage": sage, "weight_decay": weight_decay if decays else 0.0}
        for (sage, decays), params in groups.items()
        if params
    ]
