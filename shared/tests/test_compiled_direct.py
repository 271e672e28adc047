"""What is entered directly does what its function does; norms are those of float64."""

import pytest
import torch

from finetune_common.compiled import Direct, DirectByShape
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


def outer(x, y, out):
    out.copy_(x[:, None] * y[None])


def test_shapes_and_dtypes_may_change_from_call_to_call():
    direct = DirectByShape(outer, "a test", "outer")
    shapes = [(3, 4), (5, 4), (3, 4), (5, 7), (5, 4), (1, 4), (5, 1), (3, 4)]
    for dtype in (torch.float32, torch.float64):
        for rows, columns in shapes:
            x, y = torch.randn(rows, dtype=dtype), torch.randn(columns, dtype=dtype)
            out = torch.empty(rows, columns, dtype=dtype)
            direct(x, y, out)
            assert out.equal(torch.outer(x, y))
            assert direct.enters(x, y, out)


def test_tensors_of_one_storage_are_never_entered_directly():
    direct = DirectByShape(outer, "a test", "outer")
    for _ in range(3):
        x, y = torch.randn(8).split(4)
        out = torch.empty(4, 4)
        direct(x, y, out)
        assert out.equal(torch.outer(x, y))
        assert not direct.enters(x, y, out)


def test_code_of_one_device_is_never_entered_with_tensors_of_another():
    direct = DirectByShape(outer, "a test", "outer")
    tensors = torch.randn(4), torch.randn(3), torch.empty(4, 3)
    direct(*tensors)
    assert direct.enters(*tensors)
    assert not direct.enters(*[tensor.to("meta") for tensor in tensors])


def test_of_many_shapes_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(DirectByShape, "MOST", 4)
    direct = DirectByShape(outer, "a test", "outer")
    tensors = [(torch.randn(n), torch.randn(3), torch.empty(n, 3)) for n in range(2, 12)]
    for own in tensors:
        direct(*own)
        assert own[2].equal(torch.outer(*own[:2]))
    assert sum(direct.enters(*own) for own in tensors) <= 4


@pytest.mark.parametrize("count", [BLOCK - 1, BLOCK + 1, 7 * BLOCK])
def test_norms_of_large_tensors_are_those_of_float64(count):
    tensor = torch.rand(count, generator=torch.Generator().manual_seed(0))
    exact = tensor.double().square().sum().sqrt().item()
    assert norm_of(tensor) == pytest.approx(exact, rel=5e-6)
    assert whole_norms([tensor]).item() == norm_of(tensor)
