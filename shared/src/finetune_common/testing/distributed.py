"""Contracts on two processes (gloo, CPU)."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings

# torch's seeding and collectives have no types:
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from finetune_common.aliases import Settings, is_sharded
from finetune_common.errors import ConfigurationError

if TYPE_CHECKING:
    from torch.distributed.tensor.placement_types import Placement

__all__ = ["check_two_processes", "run_two_processes"]


def run_two_processes(function: Callable[..., object], *arguments: object) -> None:
    """Call `function(rank, *arguments)` in each of two new processes that are joined by gloo.

    Args:
        function: A module-level function, so that the processes can import it; its result is dropped.
        *arguments: Any that `pickle` can carry.

    Raises:
        torch.multiprocessing.ProcessRaisedException: With the error of the first process that failed.

    Examples:
        >>> from finetune_common.testing import run_two_processes
        >>> run_two_processes(divmod, 1)  # 0 and 1 divided by 1
    """
    # They meet by a file: another program could take a free port before it is used.
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (Path(folder, "meeting").as_uri(), function, arguments), nprocs=2)


def _process(rank: int, meeting: str, function: Callable[..., object], arguments: Sequence[object]) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        # One process may join before the other: it must not leave until both have joined.
        dist.barrier()
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # A thread of gloo that drops its last tensor while the interpreter shuts down aborts the process.
    os._exit(0)


def check_two_processes(
    cls: Callable[..., torch.optim.Optimizer],
    settings: Sequence[Settings],
    stored: Sequence[Settings] = (),
) -> None:
    """Check an optimizer on two processes, with each of several settings.

    Sharded parameters (DTensor) take the same steps as whole ones; under DDP the processes stay equal;
    torch's checkpoint tools restore a sharded state; ZeroRedundancyOptimizer steps alike or is refused.

    Args:
        cls: The optimizer's class.
        settings: Keyword arguments of the optimizer, once for each check.
        stored: Further settings, for the checkpoint only.

    Raises:
        torch.multiprocessing.ProcessRaisedException: With the assertion that a process found broken.
    """
    run_two_processes(_check_optimizer, cls, settings, stored)


def _check_optimizer(
    rank: int,
    cls: Callable[..., torch.optim.Optimizer],
    settings: Sequence[Settings],
    stored: Sequence[Settings],
) -> None:
    for case in settings:
        _sharded_equals_whole(cls, case)
        _sharded_checkpoint_goes_on(cls, case, flatten=True)
        _zero_is_one_process_or_refused(cls, case, rank)
        _replicas_stay_equal(cls, case, rank)
    for case in (*settings, *stored):
        _sharded_checkpoint_goes_on(cls, case, flatten=False)


def _sharded_equals_whole(cls: Callable[..., torch.optim.Optimizer], settings: Settings) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape)) for shape in ((5, 3), (3, 4), (1,), (2, 2))]
    placements: list[list[Placement] | None] = [[Shard(0)], [Replicate()], [Shard(0)], None]

    def placed(tensor: Tensor, placement: list[Placement] | None) -> Tensor:
        return tensor if placement is None else distribute_tensor(tensor, mesh, placement)

    sharded = [
        nn.Parameter(placed(param.detach().clone(), placement))
        for param, placement in zip(whole, placements, strict=True)
    ]
    optimizers = cls(whole, **settings), cls(sharded, **settings)
    for step in range(5):
        torch.manual_seed(step + 1)
        for param, shard, placement in zip(whole, sharded, placements, strict=True):
            param.grad = torch.randn(param.shape)
            shard.grad = placed(param.grad.clone(), placement)
        optimizers[0].step()
        with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as collective:
            optimizers[1].step()
        assert collective.call_count <= 1, f"{collective.call_count} collectives for one mesh"
    for param, shard in zip(whole, sharded, strict=True):
        gathered = shard.full_tensor() if is_sharded(shard) else shard
        torch.testing.assert_close(gathered, param.detach(), rtol=1e-6, atol=1e-7)


def _sharded_checkpoint_goes_on(
    cls: Callable[..., torch.optim.Optimizer], settings: Settings, flatten: bool
) -> None:
    """FSDP2: an optimizer continues from the state that torch's checkpoint tools gathered from another."""
    from torch.distributed.checkpoint import state_dict as tools
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def built() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        return model, cls(model.parameters(), **settings)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            batch = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
            model(batch).square().mean().backward()
            optimizer.step()

    expected, optimizer = built()
    train(expected, optimizer, range(2))
    options = tools.StateDictOptions(full_state_dict=not flatten, flatten_optimizer_state_dict=flatten)
    saved = tools.get_optimizer_state_dict(expected, optimizer, options=options)
    weights = tools.get_model_state_dict(expected)
    resumed, other = built()
    tools.set_model_state_dict(resumed, weights)
    tools.set_optimizer_state_dict(resumed, other, saved, options=options)
    for model, trained_by in ((expected, optimizer), (resumed, other)):
        train(model, trained_by, range(2, 3))
    for a, b in zip(expected.parameters(), resumed.parameters(), strict=True):
        assert is_sharded(a)
        assert is_sharded(b)
        assert torch.equal(a.full_tensor(), b.full_tensor())


def _zero_is_one_process_or_refused(
    cls: Callable[..., torch.optim.Optimizer], settings: Settings, rank: int
) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    whole, divided = ([nn.Parameter(torch.ones(shape)) for shape in ((5, 3), (4,), (2, 2))] for _ in range(2))
    alone = cls(whole, **settings)
    try:
        zero = ZeroRedundancyOptimizer(divided, cls, **settings)  # pyright: ignore[reportArgumentType]  # also a function
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for parameter, other in zip(whole, divided, strict=True):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                other.grad = parameter.grad.clone()
            zero.step()
            alone.step()
    except ConfigurationError:
        return
    for parameter, other in zip(whole, divided, strict=True):
        assert torch.equal(parameter, other)
    zero.consolidate_state_dict(to=0)
    if rank == 0:
        resumed = cls(divided, **settings)
        resumed.load_state_dict(zero.state_dict())
        for param, twin in zip(whole, divided, strict=True):
            for name, value in alone.state[param].items():
                assert torch.equal(value, resumed.state[twin][name]), name


def _replicas_stay_equal(cls: Callable[..., torch.optim.Optimizer], settings: Settings, rank: int) -> None:
    torch.manual_seed(rank)
    layer = nn.Linear(4, 2)
    model = nn.parallel.DistributedDataParallel(layer)
    before = layer.weight.detach().clone()
    optimizer = cls(model.parameters(), **settings)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()
    for param in model.parameters():
        both = [torch.empty_like(param) for _ in range(2)]
        dist.all_gather(both, param.detach())
        assert torch.equal(*both), "the replicas differ"
    assert not torch.equal(before, layer.weight)
