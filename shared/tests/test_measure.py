"""What a run's costs are counted with."""

import gc
import weakref

import pytest
import torch
from torch import nn

from finetune_common.measure import RESET, SavedTensorMeter, peak_memory_bytes, reset_peak_memory


@pytest.mark.skipif(not RESET.exists(), reason="a process's peak can be reset on Linux only")
def test_the_peak_can_be_counted_from_now_on():
    """A run in a process that did larger ones before has a peak of its own."""
    block = torch.ones(2**27)
    high = peak_memory_bytes()
    del block
    reset_peak_memory()
    assert peak_memory_bytes() < high - 2**28
    block = torch.ones(2**26)
    assert peak_memory_bytes() > block.nbytes


def test_what_a_metered_pass_keeps_is_freed_with_its_loss():
    """Tanh, softmax and exp keep their own output, which knows its graph and would keep it for ever."""
    layer = nn.Linear(4, 2)
    with SavedTensorMeter(layer):
        loss = torch.softmax(layer(torch.ones(3, 4)).tanh(), dim=-1).exp().sum()
    model = weakref.ref(layer.weight)
    del loss, layer
    gc.collect()
    assert model() is None


def test_second_derivatives_are_the_same_under_the_meter():
    layer, x = nn.Linear(4, 2), torch.randn(3, 4, requires_grad=True)

    def second() -> torch.Tensor:
        (first,) = torch.autograd.grad(layer(x).tanh().exp().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = second()
    with SavedTensorMeter(layer):
        assert torch.equal(second(), expected)
