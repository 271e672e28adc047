"""Allocation against exhaustive search, sensitivities against brute force, and what a measurement leaves."""

import itertools
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from activation_compression import ActivationCompressor
from activation_compression.allocation import allocate, noise
from activation_compression.automatic import probe
from finetune_common.errors import ConfigurationError


def variance(widths, sensitivities):
    return sum(c * noise(widths[key]) for key, c in sensitivities.items())


@pytest.mark.parametrize("seed", range(12))
def test_allocation_is_close_to_the_best_of_all(seed):
    """Equal sizes: within 1.5 times the least variance of all widths, within the budget."""
    draw = random.Random(seed)
    keys = "abcde"
    sensitivities = {key: 10 ** draw.uniform(-4, 2) for key in keys}
    elements = dict.fromkeys(keys, 64)
    average = draw.choice([2, 3, 3.5, 4])
    found = allocate(sensitivities, elements, average)
    assert sum(found.values()) <= average * len(keys)
    candidates = (
        dict(zip(keys, w, strict=True)) for w in itertools.product((1, 2, 4, 8, 32), repeat=len(keys))
    )
    budget = sum(found.values())
    best = min(variance(w, sensitivities) for w in candidates if sum(w.values()) <= budget)
    assert variance(found, sensitivities) <= 1.5 * best + 1e-12


def test_allocation_of_different_sizes_keeps_the_budget():
    elements = {"large": 10_000, "small": 10, "empty": 0}
    widths = allocate({"large": 1.0, "small": 1.0, "empty": 0.0}, elements, 4)
    assert sum(widths[k] * n for k, n in elements.items()) <= 4 * sum(elements.values())
    assert widths["small"] > widths["large"]


def encoder(dropout=0.1):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout, batch_first=True, activation="gelu")
    model = nn.Sequential(nn.Linear(16, 32), nn.TransformerEncoder(layer, 2), nn.Linear(32, 1)).train()
    x = torch.randn(8, 24, 16)
    return model, lambda: model(x).square().mean()


@pytest.fixture(scope="module")
def measured():
    model, loss_fn = encoder()
    compressor = ActivationCompressor(model, "L2")
    compressor.adapt(loss_fn, probes=8)
    [entry] = compressor.log
    brute = dict.fromkeys(entry["elements"], 0.0)
    for seed in range(2):
        compressor = ActivationCompressor(model, "L2", seed=seed)
        for key, c in probe(compressor, loss_fn, [{key: 1} for key in brute]).items():
            brute[key] += c / 2
    return model, loss_fn, entry, brute


def test_sensitivities_agree_with_brute_force(measured):
    """One pass forward and 9 backward, against 3 forward and backward passes for each of the tensors."""
    *_, entry, brute = measured
    keys = list(brute)
    assert len(keys) > 12
    ours = [entry["sensitivities"][key] for key in keys]
    assert spearmanr(ours, [brute[key] for key in keys]).statistic > 0.9


def test_widths_reach_the_variance_of_brute_force_at_equal_bytes(measured):
    *_, entry, brute = measured
    wanted = allocate(brute, entry["elements"], 4)
    fixed = dict.fromkeys(brute, 4)
    assert variance(entry["widths"], brute) < 1.5 * variance(wanted, brute)
    assert variance(entry["widths"], brute) < 0.5 * variance(fixed, brute)


def test_automatic_precision_beats_fixed_at_equal_bytes(measured):
    """The error of whole gradients, over 12 roundings."""
    model, loss_fn, entry, _ = measured

    def gradient(compressor):
        torch.manual_seed(4)
        with compressor:
            loss = loss_fn()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    exact = gradient(ActivationCompressor(model, "L0"))
    automatic, fixed = ActivationCompressor(model, "L2"), ActivationCompressor(model, "L1")
    automatic.widths = entry["widths"]
    errors = [sum(float((gradient(c) - exact).square().sum()) for _ in range(12)) for c in (automatic, fixed)]
    assert automatic.stats.stored_bytes <= fixed.stats.stored_bytes
    assert errors[0] < 0.9 * errors[1]


def test_what_automatic_precision_keeps_is_exact():
    """A tensor that several operations save is kept for all of them, and shifts the name of none."""
    model, loss_fn = encoder()
    compressor = ActivationCompressor(model, "L2")
    kept = dict.fromkeys(compressor.adapt(loss_fn), 32)

    def gradient(widths):
        torch.manual_seed(4)
        compressor.widths = widths
        with compressor:
            loss = loss_fn()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    def names():
        return [f"{row.module}:{row.operation}" for row in compressor.stats.rows]

    gradient({})
    named = names()
    torch.manual_seed(4)
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(), list(model.parameters()))])
    assert not gradient({}).equal(exact)
    assert gradient(kept).equal(exact)
    assert names() == named


def test_a_measurement_leaves_no_trace():
    model, loss_fn = encoder()
    model.append(nn.BatchNorm1d(24))
    loss_fn().backward()
    before = {
        "torch": torch.get_rng_state(),
        "buffers": [b.clone() for b in model.buffers()],
        "gradients": [p.grad.clone() if p.grad is not None else None for p in model.parameters()],
    }
    python, numpy = random.getstate(), np.random.get_state()[1].copy()

    def restless():
        random.random()
        np.random.rand()
        return loss_fn()

    ActivationCompressor(model, "L2.2").adapt(restless)
    assert torch.get_rng_state().equal(before["torch"])
    assert random.getstate() == python
    assert (np.random.get_state()[1] == numpy).all()
    assert all(a.equal(b) for a, b in zip(model.buffers(), before["buffers"], strict=True))
    for parameter, gradient in zip(model.parameters(), before["gradients"], strict=True):
        assert parameter.grad is gradient is None or parameter.grad.equal(gradient)


def test_a_measurement_leaves_gradients_of_others_alone():
    """The head that makes the loss is not part of the compressed model."""
    model, head = nn.Sequential(nn.Linear(64, 64), nn.GELU()), nn.Linear(64, 1)
    x = torch.randn(64, 64).requires_grad_()
    compressor = ActivationCompressor(model, "L2")
    compressor.adapt(lambda: head(model(x)).square().mean())
    assert [t.grad for t in (head.weight, head.bias, x)] == [None] * 3
    assert all(t.requires_grad for t in (*head.parameters(), *model.parameters(), x))


@pytest.mark.parametrize("bits", [8, 12, 20])
def test_an_average_beyond_eight_bits_is_kept_too(bits):
    model, loss_fn = encoder()
    compressor = ActivationCompressor(model, bits=bits)
    widths = compressor.adapt(loss_fn)
    with compressor:
        loss_fn()
    [entry] = compressor.log
    used = sum(widths[key] * count for key, count in entry["elements"].items())
    assert used <= entry["average"] * sum(entry["elements"].values())
    assert bits <= entry["average"] < 2 * bits
    assert compressor.stats.ratio > 1.2


def test_what_cannot_be_differentiated_twice_is_probed_in_groups():
    """Attention without dropout uses a kernel without second derivatives on CPU: groups over layers."""
    model, loss_fn = encoder(dropout=0.0)
    compressor = ActivationCompressor(model, "L2")
    compressor.adapt(loss_fn)
    sensitivities = compressor.log[0]["sensitivities"]
    alike = [c for key, c in sensitivities.items() if "norm1" in key]
    assert len(alike) == 2
    assert alike[0] == pytest.approx(alike[1])


def test_the_average_is_kept_and_survives_saving():
    model, loss_fn = encoder()
    compressor = ActivationCompressor(model, bits=3.5)
    widths = compressor.adapt(loss_fn)
    elements = compressor.log[0]["elements"]
    average = compressor.log[0]["average"]
    assert sum(widths[k] * n for k, n in elements.items()) <= average * sum(elements.values())
    assert 3.5 <= average < 7
    other = ActivationCompressor(model, bits=3.5)
    other.load_state_dict(compressor.state_dict())
    assert other.widths == widths
    with other:
        loss_fn()
    found = {row.bits for row in other.stats.rows if row.dtype == "float32"}
    assert found <= {0, 1, 2, 4, 8, 32}  # 0: computed again
    assert len(found) > 2


def test_a_loss_inside_the_compressor_is_refused():
    model, loss_fn = encoder()
    compressor = ActivationCompressor(model, "L2")

    def inside():
        with compressor:
            return loss_fn()

    with pytest.raises(ConfigurationError, match="within a context"):
        compressor.adapt(inside)


def test_below_its_least_width_a_tensor_goes_only_where_nothing_else_is_left():
    sensitivities, elements = {"linear": 5.0, "norm": 1e-6}, {"linear": 100, "norm": 100}
    assert allocate(sensitivities, elements, 1.5) == {"linear": 2, "norm": 1}
    assert allocate(sensitivities, elements, 1.5, {"norm": 2}) == {"linear": 1, "norm": 2}
    assert allocate(sensitivities, elements, 1.0, {"norm": 2}) == {"linear": 1, "norm": 1}


class Normalised(nn.Module):
    """Ten normalised blocks on a residual stream with an outlier, as pre-trained transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(256) for _ in range(10))
        self.maps = nn.ModuleList(nn.Linear(256, 256) for _ in range(10))

    def forward(self, x):
        for norm, linear in zip(self.norms, self.maps, strict=True):
            x = norm(x + nn.functional.gelu(linear(x)) + self.outlier)
        return x

    outlier = nn.functional.one_hot(torch.tensor(7), 256) * 40.0


def test_of_three_allocations_the_best_one_is_taken():
    """The first order alone can be far off; whatever is taken is no worse than equal widths."""
    torch.manual_seed(0)
    model, x = Normalised(), torch.randn(64, 256)
    weight = torch.randn(64, 256)

    def gradient(context) -> torch.Tensor:
        model.zero_grad()
        with context:
            loss = (model(x) * weight).sum()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    compressor = ActivationCompressor(model, "L2.2", seed=5)
    compressor.adapt(lambda: (model(x) * weight).sum())
    taken, entry, plain = compressor.widths, compressor.log[-1], gradient(nullcontext())

    def error(widths) -> float:
        compressor.widths = widths
        return sum(float((gradient(compressor) - plain).square().sum()) for _ in range(4))

    linear = {key: 1 if ":linear:" in key else 2 for key in taken}
    first_order = allocate(entry["sensitivities"], entry["elements"], 2)
    careful = allocate(entry["sensitivities"], entry["elements"], 2, linear)
    equal = dict.fromkeys(taken, 2)
    errors = {
        name: error(widths)
        for name, widths in (("first", first_order), ("careful", careful), ("equal", equal))
    }
    assert error(taken) < 1.5 * min(errors.values())
