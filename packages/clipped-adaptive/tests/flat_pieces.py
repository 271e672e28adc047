"""What runs in each of two processes; a module of its own, so that they can import it."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import init_device_mesh

from clipped_adaptive import ClippedAdam
from finetune_common.errors import ConfigurationError

NEED_WHOLE = (
    [{"clip": clip} for clip in ("global", "layer", "local")]
    + [{"clip": "none", "norm": True}]
    + [{"clip": "none", "skip_nonfinite": "step"}]
)
NEED_ELEMENTS = [{"clip": "none"}, {"clip": "elementwise"}]


def check(rank):
    """torch's first FSDP gives a process a piece of all tensors joined; the second one gives DTensors."""
    for views in (False, True):
        for settings in NEED_WHOLE:
            with pytest.raises(ConfigurationError, match="fully_shard"):
                step(flattened(views), settings)
        for settings in NEED_ELEMENTS:
            step(flattened(views), settings)
    for settings in (*NEED_WHOLE, *NEED_ELEMENTS):
        step(fully_shard(small(), mesh=init_device_mesh("cpu", (2,))), settings)


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def flattened(views):
    return FullyShardedDataParallel(small(), use_orig_params=views, device_id=torch.device("cpu"))


def step(model, settings):
    optimizer = ClippedAdam(model.parameters(), lr=0.1, **settings)
    model(torch.ones(3, 4)).square().mean().backward()
    optimizer.step()
