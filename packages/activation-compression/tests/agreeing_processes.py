"""What runs in each of two processes; a module of its own, so that they can import it."""

import torch
import torch.distributed as dist
from torch import nn

from activation_compression import ActivationCompressor


def check_agreement(rank):
    """Batches differ in values and size; widths, groups and the bytes of equal batches are the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 1))
    torch.manual_seed(1 + rank)
    x = torch.randn(256 - 64 * rank, 64) * (1 + 9 * rank)
    compressor = ActivationCompressor(model, "L2")
    compressor.adapt(lambda: model(x).square().mean())
    [entry] = compressor.log
    mine = compressor.widths, compressor.ways, entry["sensitivities"], entry["elements"], entry["taken"]
    everyone = [None, None]
    dist.all_gather_object(everyone, mine)
    assert everyone[0] == everyone[1]
    assert compressor.widths
    alone = 256 * 64 if rank == 0 else 192 * 64
    assert sum(entry["elements"].values()) > 2 * alone  # those of both
