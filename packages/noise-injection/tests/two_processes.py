"""What runs in each of two processes; a module of its own, so that they can import it."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from finetune_common.errors import ConfigurationError
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise
from noise_injection.slots import AgniMethod, AgniOptions

DOUBLE = torch.float64


def linear():
    torch.manual_seed(0)
    return nn.Linear(6, 4).to(DOUBLE)


def batches(count):
    torch.manual_seed(1)
    return torch.randn(count, 5, 6, dtype=DOUBLE)


def one_process(variance, micro):
    """Two replicas with `micro` micro-batches each are one process with 2·micro of them."""
    net = linear()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    AdaptiveGradientNoise(optimizer, 1.0, variance)
    for window in batches(3 * 2 * micro).split(2 * micro):
        for x in window:
            (net(x).square().mean() / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in net.parameters()]


def replicated(rank, variance, micro):
    net = nn.parallel.DistributedDataParallel(linear())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    AgniMethod(AgniOptions(1.0, variance, seed=0)).attach(optimizer, accumulate=micro)
    for window in batches(3 * 2 * micro).split(2 * micro):
        mine = window[rank::2]
        for i, x in enumerate(mine, start=1):
            net.require_backward_grad_sync = i == micro
            (net(x).square().mean() / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in net.parameters()]


def check_replicas(rank, expected, variance, micro):
    mine = replicated(rank, variance, micro)
    for own, reference in zip(mine, expected, strict=True):
        others = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(others, own)
        assert others[0].equal(others[1])
        torch.testing.assert_close(own, reference)


def check_shards(rank):
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    history = torch.randn(3, 20_000, dtype=DOUBLE)

    def noise(sharded):
        value = torch.zeros(20_000, dtype=DOUBLE)
        param = nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]) if sharded else value)
        optimizer = torch.optim.SGD([param], lr=0.0)
        AdaptiveGradientNoise(optimizer, 1e4, "running")
        for gradient in history:
            param.grad = distribute_tensor(gradient, mesh, [Shard(0)]) if sharded else gradient.clone()
            optimizer.step()
        grad = param.grad.full_tensor() if isinstance(param.grad, DTensor) else param.grad
        return (grad - history[-1]) / history.std(0) / 1e2

    sharded, whole = noise(True), noise(False)
    # the norm is that of the whole tensor: the same spread; 4 standard errors of a deviation of 20,000 draws
    assert abs(sharded.std() / whole.std() - 1) < 4 / 20_000**0.5
    first, second = sharded.chunk(2)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 4 / 10_000**0.5


def check_state_of_shards(rank):
    """Statistics of a sharded tensor are those of the whole one, and go on from the whole ones."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    history = torch.randn(4, 5, 3, dtype=DOUBLE)

    def noise(sharded):
        value = torch.zeros(5, 3, dtype=DOUBLE)
        param = nn.Parameter(distribute_tensor(value, mesh, [Shard(0)]) if sharded else value)
        return param, AdaptiveGradientNoise(torch.optim.SGD([param], lr=0.0), 1.0, "running")

    def observe(param, noise, gradients):
        for gradient in gradients:
            spread = isinstance(param, DTensor)
            param.grad = distribute_tensor(gradient, mesh, [Shard(0)]) if spread else gradient.clone()
            noise.optimizer.step()

    def whole(noise):
        [moments] = noise.state_dict()["moments"].values()
        full = {name: getattr(t, "full_tensor", lambda t=t: t)() for name, t in moments.items()}
        return {name: t.reshape(-1) if t.ndim else t for name, t in full.items()}

    plain, sharded, again = noise(False), noise(True), noise(True)
    observe(*plain, history)
    observe(*sharded, history[:2])
    state = sharded[1].state_dict()
    again[1].load_state_dict({**state, "moments": {0: whole(sharded[1])}})
    observe(*again, history[2:])
    for name, expected in whole(plain[1]).items():
        torch.testing.assert_close(whole(again[1])[name], expected)


def check_fully_sharded(rank):
    mesh = init_device_mesh("cpu", (2,))

    def step(variance):
        net = linear()
        fully_shard(net, mesh=mesh)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        AdaptiveGradientNoise(optimizer, 1.0, variance)
        for x in batches(2):
            net(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(p.full_tensor().isfinite().all() for p in net.parameters())

    step("running")
    step("ema")
    with pytest.raises(ConfigurationError, match="under FSDP"):
        step("microbatch")


def check_flat_pieces(rank):
    """torch's first FSDP gives a process a piece of all tensors joined: no tensor's norm, nor its part."""
    for whole_views in (False, True):
        net = FullyShardedDataParallel(linear(), use_orig_params=whole_views, device_id=torch.device("cpu"))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        AnnealedGradientNoise(optimizer, 1.0)
        net(batches(1)[0]).square().mean().backward()
        with pytest.raises(ConfigurationError, match="fully_shard"):
            optimizer.step()


def check_annealed(rank):
    param = nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.SGD([param], lr=1.0)
    AnnealedGradientNoise(optimizer, 1.0)
    param.grad = torch.zeros(50)
    optimizer.step()
    others = [torch.empty(50) for _ in range(2)]
    dist.all_gather(others, param.detach())
    assert others[0].equal(others[1])
    assert others[0].abs().max() > 0


def check(rank, cases):
    for variance, micro, expected in cases:
        check_replicas(rank, expected, variance, micro)
    check_shards(rank)
    check_state_of_shards(rank)
    check_fully_sharded(rank)
    check_flat_pieces(rank)
    check_annealed(rank)
