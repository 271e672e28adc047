"""Automatic precision chooses groups with widths: no worse than one way to group for all, or equal widths."""

import itertools
import random

import pytest
import torch
from torch import nn

from activation_compression import ActivationCompressor
from activation_compression.allocation import Way, allocate_ways, noise

NAMES = ("columns", "rotated", "neighbours")
GROUP = {"columns": 256, "rotated": 64, "neighbours": 256}


def drawn(seed, count):
    """Tensors of random sizes, whose ways to group differ in variance by up to ten times."""
    draw = random.Random(seed)
    elements = {f"t{i}": 256 * draw.randint(4, 40) for i in range(count)}
    ways = {}
    for key, n in elements.items():
        c = 10 ** draw.uniform(-4, 2)
        usual = draw.choice(NAMES)
        order = [usual, *(name for name in NAMES if name != usual)]
        ways[key] = {name: Way(c * 10 ** draw.uniform(-1, 0), n // GROUP[name]) for name in order}
    return ways, elements


def usual_ends(ways):
    return 32 * sum(next(iter(own.values())).groups for own in ways.values())


def cost(widths, chosen, ways, elements):
    """Bits of codes, and of minima and steps."""
    codes = sum(widths[key] * n for key, n in elements.items())
    return codes, 32 * sum(ways[key][chosen[key]].groups for key in elements)


def variance(widths, chosen, ways):
    return sum(ways[key][chosen[key]].sensitivity * noise(widths[key]) for key in ways)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("average", [2, 3.5, 4])
def test_choice_is_no_worse_than_one_way_for_all_or_equal_widths_at_the_same_bytes(seed, average):
    """Thirty tensors: one of them more or less is all that two sums of steps can differ by."""
    ways, elements = drawn(seed, 30)
    widths, chosen = allocate_ways(ways, elements, average)
    codes, ends = cost(widths, chosen, ways, elements)
    assert codes <= average * sum(elements.values())
    assert codes + ends <= average * sum(elements.values()) + usual_ends(ways)
    found = variance(widths, chosen, ways)
    for name in NAMES:
        alone = {key: {name: own[name]} for key, own in ways.items()}
        one = dict.fromkeys(elements, name)
        others, _ = allocate_ways(alone, elements, average)
        # finer groups for all cost more bytes than the usual ones: then less may be left for codes
        spent = sum(cost(others, one, ways, elements))
        if spent <= average * sum(elements.values()) + usual_ends(ways):
            assert found <= 1.02 * variance(others, one, ways)
    usual = {key: next(iter(own)) for key, own in ways.items()}
    equal = dict.fromkeys(elements, max(b for b in (1, 2, 4) if b <= average))
    assert found <= variance(equal, usual, ways)


@pytest.mark.parametrize("seed", range(6))
def test_choice_is_close_to_the_best_of_all(seed):
    """Against every combination of widths and ways of three tensors that costs no more."""
    ways, elements = drawn(seed, 3)
    elements = dict.fromkeys(elements, 256 * 16)
    ways = {
        key: {name: Way(way.sensitivity, elements[key] // GROUP[name]) for name, way in own.items()}
        for key, own in ways.items()
    }
    widths, chosen = allocate_ways(ways, elements, 4)
    spent = sum(cost(widths, chosen, ways, elements))
    widths_and_names = itertools.product(
        itertools.product((1, 2, 4, 8, 32), repeat=3), itertools.product(NAMES, repeat=3)
    )
    every = [(dict(zip(ways, b, strict=True)), dict(zip(ways, n, strict=True))) for b, n in widths_and_names]
    best = min(variance(*own, ways) for own in every if sum(cost(*own, ways, elements)) <= spent)
    assert variance(widths, chosen, ways) <= 1.5 * best + 1e-12


class Outliers(nn.Module):
    """Tensors of which each wants other groups: single features of tokens are huge, or whole tokens are."""

    def __init__(self):
        super().__init__()
        self.features, self.tokens = nn.Linear(64, 64), nn.Linear(64, 64)
        self.scattered, self.head = nn.Linear(64, 64), nn.Linear(192, 8)
        torch.manual_seed(3)
        self.by_feature = 40.0 * (torch.arange(64) % 50 == 7)
        self.by_token = 40.0 * (torch.arange(320) % 61 == 5)[:, None] + 1.0
        self.single = 60.0 * (torch.rand(320, 64) > 0.996)

    def forward(self, x):
        first = self.features(x * 1.5 + self.by_feature)
        second = self.tokens(x * 2.5 * self.by_token)
        third = self.scattered(x * 0.5 + self.single)
        return self.head(torch.cat([first.sin(), second.tanh(), third.cos()], dim=1))


def test_gradients_with_the_choice_are_no_worse_than_with_one_way_for_all():
    """Errors of whole gradients, the mean of twelve draws, at no more bytes than equal widths."""
    torch.manual_seed(0)
    model = Outliers()
    x, weight = torch.randn(320, 64, requires_grad=True), torch.randn(320, 8)
    wanted = list(model.parameters())

    def loss_fn():
        return (model(x) * weight).sum()

    def gradient(compressor):
        with compressor:
            loss = loss_fn()
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted)])

    plain = torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(), wanted)])
    automatic = ActivationCompressor(model, "L2", seed=1)
    automatic.adapt(loss_fn)
    assert len(set(automatic.ways.values())) > 1

    def error(widths, ways):
        own = ActivationCompressor(model, "L2", seed=2)
        own.widths, own.ways = widths, ways
        return sum(float((gradient(own) - plain).square().sum()) for _ in range(12)), own.stats.stored_bytes

    found, stored = error(automatic.widths, automatic.ways)
    equal, fixed = error({}, {})
    assert stored <= fixed
    assert found <= equal
    for name in NAMES:
        one, _ = error(automatic.widths, dict.fromkeys(automatic.widths, name))
        assert found <= 1.05 * one, name
