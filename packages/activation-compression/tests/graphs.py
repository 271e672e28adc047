"""Compiled functions whose graphs run one kernel after another; a module that new processes can import."""

import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table

from activation_compression import compile_options


def backend(options=None):
    """Return a backend that partitions and packs as Inductor would, and generates no code."""
    partition = options["custom_partitioner_fn"] if options else min_cut_rematerialization_partition
    return aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )


def compiled(function, options=None, **settings):
    """Return a function that runs the graphs that Inductor would be given."""
    torch._dynamo.reset()
    return torch.compile(function, backend=backend(options), **settings)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def check_replicas(rank):
    """Two micro-batches a process, the second of which averages: in both orders of wrapping."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 64))
    batches = torch.randn(2, 2, 128, 64)
    own = list(model.parameters())
    expected = torch.autograd.grad(model(batches.flatten(0, 2)).square().sum(), own)
    replicated = nn.parallel.DistributedDataParallel(model)
    options = compile_options("L1.1")
    outside = compiled(replicated, options)
    inside = nn.parallel.DistributedDataParallel(torch.compile(model, backend=backend(options)))
    for net, wrapper in ((outside, replicated), (inside, inside)):
        model.zero_grad()
        with wrapper.no_sync():
            net(batches[rank, 0]).square().sum().backward()
        net(batches[rank, 1]).square().sum().backward()
        for parameter, slope in zip(own, expected, strict=True):
            others = [torch.empty_like(parameter) for _ in range(2)]
            dist.all_gather(others, parameter.grad)
            assert torch.equal(*others)
            assert 0 < relative(2 * parameter.grad, slope) < 0.02 or parameter is own[-1]
    assert any(row.bits == 8 for row in options.stats.rows)
