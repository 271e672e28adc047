"""`Direct` does what its function does, whatever changes between calls; norms are those of float64."""

import pytest
import torch

from finetune_common.compiled import Direct
from finetune_common.optim.norms import BLOCK, norm_of, whole_norms


def scaled_step(row, others):
    param, grad = row
    [rate] = others
    param.sub_(grad * rate)


def apart(length):
    return [torch.randn(length), torch.randn(length)]


def checked(direct, row, rate):
    expected = row[0] - row[1] * rate
    direct(row, [rate])
    torch.testing.assert_close(row[0], expected)


def test_lengths_values_and_tensors_may_change_from_call_to_call():
    direct = Direct(scaled_step, "a test", "scaled_step")
    for length in (100, 37, 100, 1, 64, 37, 1):
        checked(direct, apart(length), torch.rand(()))


def test_rows_of_one_storage_are_told_from_rows_apart():
    direct = Direct(scaled_step, "a test", "scaled_step")
    for together in (True, False, True, False):
        row = list(torch.randn(128).split(64)) if together else apart(64)
        checked(direct, row, torch.rand(()))


def test_another_number_of_threads_has_code_of_its_own():
    direct, before = Direct(scaled_step, "a test", "scaled_step"), torch.get_num_threads()
    try:
        for threads in (1, 2, 1, 2):
            torch.set_num_threads(threads)
            checked(direct, apart(2**16), torch.rand(()))
    finally:
        torch.set_num_threads(before)


def test_a_change_in_place_is_counted_as_torch_counts_it():
    """Autograd refuses a tensor that was changed after it was saved: a direct call must tell it too."""
    direct = Direct(scaled_step, "a test", "scaled_step")
    direct(apart(8), [torch.tensor(1.0)])
    row = apart(8)
    version = row[0]._version
    direct(row, [torch.tensor(1.0)])
    assert row[0]._version > version


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK + 1, 7 * BLOCK])
def test_norms_of_large_tensors_are_those_of_float64(count):
    tensor = torch.rand(count, generator=torch.Generator().manual_seed(0))
    exact = tensor.double().square().sum().sqrt().item()
    assert norm_of(tensor) == pytest.approx(exact, rel=5e-6)
    assert whole_norms([tensor]).item() == norm_of(tensor)
