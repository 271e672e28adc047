"""Parameters that are spread over processes, and those of which a part does not tell that it is one."""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from finetune_common.errors import ConfigurationError

__all__ = ["processes", "refuse_parts"]


def processes(group: ProcessGroup | None = None) -> int:
    """Return the number of processes of a group (None for all): 1 if none was made."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def refuse_parts(params: Iterable[Tensor], setting: str) -> None:
    """Refuse parameters of torch's first FSDP, of which each process holds a piece of a joined flat tensor.

    A DTensor knows the whole tensor; such a piece, or a view of it, does not.

    Args:
        params: Parameters.
        setting: What needs whole tensors.

    Raises:
        ConfigurationError: There are several processes, and a parameter is such a piece.
    """
    # FSDP marks the flat tensor and, with use_orig_params, the parameters that become views of it.
    if processes() > 1 and any(getattr(param, "_fsdp_flattened", False) for param in params):
        raise ConfigurationError(
            f"{setting} needs whole tensors, and FullyShardedDataParallel gives this process pieces of a "
            "flat one: shard the model with torch.distributed.fsdp.fully_shard"
        )
