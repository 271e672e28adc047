"""Which parameters a clipped optimizer must see whole, and all of."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from clipped_adaptive import ClippedAdam, ClippedSGD, RunningQuantile
from finetune_common.errors import ConfigurationError
from finetune_common.testing import run_two_processes

sys.path.insert(0, str(Path(__file__).parent))
from flat_pieces import check


class Both(torch.optim.Optimizer):
    """One optimizer for matrices, another for vectors, in one process."""

    def __init__(self, matrices, vectors, clipped):
        self.inside = [torch.optim.SGD(matrices, lr=0.1), clipped(vectors)]
        super().__init__([*matrices, *vectors], {"lr": 0.1})

    def step(self, closure=None):
        for optimizer in self.inside:
            optimizer.step()


def vectors():
    return [nn.Parameter(torch.arange(1.0, 4.0)), nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize("settings", [{"clip": "global"}, {"clip": "layer"}, {"clip": "none", "norm": True}])
def test_an_optimizer_inside_another_clips_its_own_parameters(settings):
    def clipped(params):
        return ClippedAdam(params, lr=0.1, **settings)

    inside, alone = vectors(), vectors()
    matrix = nn.Parameter(torch.ones(2, 2))
    composite, single = Both([matrix], inside, clipped), clipped(alone)
    for step in range(3):
        for param in (matrix, *inside, *alone):
            param.grad = torch.full_like(param, 1.0 + step)
        composite.step()
        single.step()
    for a, b in zip(inside, alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_pieces_of_a_flat_tensor_are_refused_where_a_norm_counts():
    run_two_processes(check)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: ClippedAdam(p, lr=0.1, maximize="False"), "maximize='False' is no truth value"),
        (lambda p: ClippedAdam(p, lr=0.1, delay="False"), "delay='False' is no truth value"),
        (lambda p: ClippedAdam(p, lr=0.1, norm="False"), "norm='False' is no truth value"),
        (lambda p: ClippedAdam(p, lr=0.1, legacy="no"), "legacy='no' is no truth value"),
        (lambda p: ClippedAdam(p, lr=0.1, betas="0.9,0.999"), "betas='.*' is not a pair"),
        (lambda p: ClippedSGD(p, lr=0.1, momentum=0.9, nesterov="False"), "nesterov='False' is no truth"),
        (lambda p: RunningQuantile(0.5, window=10.5), "window=10.5 is not a whole number: give 10"),
        (
            lambda p: ClippedAdam([{"params": p, "layer": [0]}], lr=0.1, clip="layer"),
            r"layer=\[0\] cannot name a layer: give a text or a number",
        ),
    ],
)
def test_settings_of_another_kind_are_refused_in_one_line(build, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        build(vectors())
    assert "\n" not in str(raised.value)
