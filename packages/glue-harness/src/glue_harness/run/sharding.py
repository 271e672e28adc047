"""Parameters sharded over processes (FSDP2), and their state, whole or in parts."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from finetune_common.aliases import StateDict, is_sharded
from finetune_common.blocks import find_blocks
from finetune_common.errors import ConfigurationError, did_you_mean

__all__ = ["gathered", "part_here", "shard", "state_here"]


def shard(model: torch.nn.Module, device_type: str, processes: int) -> None:
    """Spread the parameters of a model over all processes, block by block (FSDP2).

    Blocks are what the model repeats and, beside it, what it names in `_no_split_modules`; or the classes
    that the launcher names in `--fsdp_transformer_layer_cls_to_wrap`.

    Args:
        model: The adapted model, the same on every process; its parameters become DTensors.
        device_type: Their device: "cpu" or "cuda".
        processes: How many processes.

    Raises:
        ConfigurationError: A parameter that cannot be split, or a class that the model has not.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise ConfigurationError(
            f"--sharding fsdp: parameter {scalars[0]} has no dimension to split: give it the shape (1,), or "
            "use --sharding none"
        )
    mesh = init_device_mesh(device_type, (processes,))
    keeps = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "shard_grad_op")
    blocks = _blocks(model)
    if not blocks:
        warnings.warn(
            f"--sharding fsdp: {type(model).__name__} repeats no block with parameters of its own: "
            "every pass gathers the whole model",
            stacklevel=2,
        )
    for module in blocks:
        fully_shard(module, mesh=mesh, reshard_after_forward=not keeps)
    fully_shard(model, mesh=mesh, reshard_after_forward=not keeps)


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the modules that are gathered one at a time, inner ones first.

    FSDP2 cannot split what two of them share: blocks that share parameters are gathered with the whole model.
    """
    modules = list(model.modules())
    if named := os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP"):
        classes = dict.fromkeys(type(module).__name__ for module in modules)
        for name in named.split(","):
            if name not in classes:
                raise ConfigurationError(
                    f"--fsdp_transformer_layer_cls_to_wrap {name}: the model has no module of this class: "
                    f"{did_you_mean(name, classes)}"
                )
        return [module for module in reversed(modules) if type(module).__name__ in named.split(",")]
    own = getattr(model, "_no_split_modules", None) or ()
    found = dict.fromkeys(
        [*find_blocks(model), *(module for module in modules if type(module).__name__ in own)]
    )
    uses = _uses(model).items()
    apart = [block for block in found if _uses(block).items() <= uses]
    inside = {part for block in apart for part in block.modules() if part is not block}
    return [block for block in apart if block not in inside]


def _uses(module: torch.nn.Module) -> Counter[Tensor]:
    """Return in how many places within a module each of its parameters is."""
    parts = module.named_modules(remove_duplicate=False)
    return Counter(parameter for _, part in parts for parameter in part.parameters(recurse=False))


def gathered(tree: Any) -> Any:
    """Return nested state with sharded tensors made whole on the CPU; every process must call it."""
    if hasattr(tree, "full_tensor"):
        return tree.full_tensor().cpu()
    if isinstance(tree, Mapping):
        return {key: gathered(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map(gathered, tree))
    return tree


def part_here(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded like a parameter; unchanged if the parameter is not sharded."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def state_here(state: StateDict, parameters: Iterable[Tensor]) -> StateDict:
    """Return an optimizer's whole state with only this process's part for sharded parameters.

    Args:
        state: From `gathered(optimizer.state_dict())`.
        parameters: The optimizer's, over all groups.
    """
    states = dict(state["state"])
    for index, parameter in enumerate(parameters):
        states[index] = {
            name: part_here(value, parameter) if _shaped_like(value, parameter) else value
            for name, value in states.get(index, {}).items()
        }
    return {**state, "state": {key: value for key, value in states.items() if value}}


def _shaped_like(value: object, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0
