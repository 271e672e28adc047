"""What a run's costs are counted with."""

import pytest
import torch

from finetune_common.measure import RESET, peak_memory_bytes, reset_peak_memory


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
