"""Eager models inside modes, transforms and hooks of torch, and functions called in unusual ways."""

import pytest
import torch
from test_derivations import Storages
from torch import nn
from torch.func import functional_call, jacfwd, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from activation_compression import ActivationCompressor, kernels

LEVELS = ["L0", "lossless", "L1.1"]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64))


def check(model, loss_fn, level):
    """Compare with plain autograd: equal where nothing is rounded, near at 8 bits."""
    plain = torch.autograd.grad(loss_fn(), list(model.parameters()))
    compressor = ActivationCompressor(model, level)
    with compressor:
        loss = loss_fn()
    found = torch.autograd.grad(loss, list(model.parameters()))
    for one, other in zip(found, plain, strict=True):
        assert one.equal(other) if level != "L1.1" else (one - other).norm() < 0.05 * other.norm()
    return compressor


class Scaled(nn.Module):
    """Two layers; what the second one reads is a normalised value times a number."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(64, 256), nn.LayerNorm(256), nn.Linear(256, 64)

    def forward(self, x):
        return self.last(self.norm(self.first(x)) * 0.1)


@pytest.mark.parametrize("level", LEVELS)
def test_a_number_is_a_factor_also_within_a_dispatch_mode(level):
    model, x = Scaled(), torch.randn(512, 64)
    with FlopCounterMode(display=False) as counter:
        check(model, lambda: model(x).sin().mean(), level)
    assert counter.get_total_flops() > 0


def test_widths_are_measured_within_a_dispatch_mode():
    model, x, widths = Scaled(), torch.randn(512, 64), []
    for mode in (torch.enable_grad(), FlopCounterMode(display=False)):
        compressor = ActivationCompressor(model, "L2")
        with mode:
            widths.append(compressor.adapt(lambda: model(x).sin().mean()))
    assert widths[0] == widths[1] != {}


class Drawn(nn.Module):
    """Draws a matrix in its forward pass, as attention by random features does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x):
        matrix = torch.empty(64, 64)
        torch.manual_seed(1)
        nn.init.kaiming_uniform_(matrix)
        return self.layer(x) @ matrix


@pytest.mark.parametrize("level", LEVELS)
def test_functions_that_change_a_tensor_may_be_called_by_keyword(level):
    x, drawn, layer = torch.randn(256, 64), Drawn(), nn.Linear(64, 64)
    check(drawn, lambda: drawn(x).square().mean(), level)
    check(layer, lambda: torch.relu_(input=layer(x) * 1).square().mean(), level)
    lazy = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LazyLinear(64))
    with ActivationCompressor(lazy, level):
        loss = lazy(x).square().mean()
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss, list(lazy.parameters())))


def test_a_waiting_value_is_stored_before_it_is_changed_by_keyword():
    """Its value before the change counts, where plain autograd would refuse to go on."""
    x, found = torch.randn(64, 64), []
    for level, way in (("L0", "no"), ("L1.1", "keyword")):
        layer = network()[0]
        with ActivationCompressor(layer, level):
            h = layer(x)
            product = h * h
            if way == "keyword":
                with torch.no_grad():
                    torch.neg_(input=h)
            loss = product.sum()
        found.append(torch.autograd.grad(loss, layer.weight)[0])
    assert (found[1] - found[0]).norm() < 0.02 * found[0].norm()


def several(model, x):
    """Return the results of the model and of one with twice its weights, at once."""
    weights = {name: torch.stack([p, p * 2]) for name, p in model.named_parameters()}
    return vmap(lambda own, x: functional_call(model, own, (x,)), (0, None))(weights, x)


TRANSFORMS = {
    "vmap": lambda m, x: vmap(m)(x.view(16, 16, 64)),
    "vmap over weights": several,
    "vmap of a change in place": lambda m, x: vmap(lambda z: (m(z) * m(z)).add_(1.0))(x.view(16, 16, 64)),
    "jvp": lambda m, x: torch.stack(jvp(m, (x,), (torch.ones_like(x),))),
    "jacfwd": lambda m, x: jacfwd(lambda z: m(z).sum(0))(x[:32]),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch's own, in jvp
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_torch_func(name, level):
    model, x = network(), torch.randn(256, 64)
    plain = torch.autograd.grad(TRANSFORMS[name](model, x).square().mean(), model[0].weight)[0]
    with ActivationCompressor(model, level):
        loss = TRANSFORMS[name](model, x).square().mean()
    found = torch.autograd.grad(loss, model[0].weight)[0]
    assert found.equal(plain) if level != "L1.1" else (found - plain).norm() < 0.05 * plain.norm()


def conjugated(model, x):
    c = torch.view_as_complex(model(x).view(512, 32, 2))
    return (c.conj() * c.sin()).abs()


def with_hooks(pack, unpack):
    def run(model, x):
        h = model[0](x)
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            h = model[1](h)
        return model[2](h)

    return run


KEPT = {
    "conjugated": conjugated,
    "own hooks that copy": with_hooks(torch.clone, lambda t: t),
    "own hooks that change nothing": with_hooks(lambda t: t, lambda t: t),
    "own hooks that pack two": with_hooks(lambda t: (t.bfloat16(), t - t.bfloat16()), lambda p: p[0] + p[1]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_as_it_is_is_counted(name, monkeypatch):
    """The storages that are alive after the forward pass, counted without asking the compressor."""
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    model, x = network(), torch.randn(512, 64)
    compressor = ActivationCompressor(model, "L1")
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), x)}
    with Storages() as storages, compressor:
        loss = KEPT[name](model, x).square().mean()
    assert loss.requires_grad
    told = compressor.stats.stored_bytes - x.nbytes
    assert abs(storages.alive(own) - told) <= 0.02 * told + 10_000


def test_jagged_tensors_are_counted():
    """Inputs of the layers and of the activation, in whole: 512 rows of 64, 256, 256 and 64 numbers."""
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    rows = torch.nested.nested_tensor_from_jagged(torch.randn(512, 64), torch.tensor([0, 100, 512]))
    with ActivationCompressor(model) as compressor:
        loss = model(rows).values().square().mean()
    loss.backward()
    assert compressor.stats.stored_bytes >= 512 * (64 + 256 + 256) * 4


def test_a_sparse_buffer_is_no_obstacle():
    model = network()
    model.register_buffer("graph", torch.eye(256).to_sparse())
    x = torch.randn(256, 64)
    check(model, lambda: (model.graph @ model(x)).square().mean(), "lossless")
