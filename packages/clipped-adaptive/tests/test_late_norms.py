"""Norms that are taken just before each update clip as norms that are taken before all of them."""

import pytest
import torch
from torch import nn

from clipped_adaptive import ClippedAdam

SIZES = [10, 9_000, 20_000, 1]


def trained(monkeypatch, late, fused):
    if not late:
        monkeypatch.setattr("clipped_adaptive.base.LateCoefficients.possible", lambda batches: False)
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES]
    optimizer = ClippedAdam(params, lr=0.01, clip="local", max_norm=2.0, fused=fused)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()
    return params, optimizer.clip_report()


@pytest.mark.parametrize("fused", [False, True])
def test_late_norms_change_nothing(monkeypatch, fused):
    params, report = trained(monkeypatch, True, fused)
    expected, same = trained(monkeypatch, False, fused)
    for param, other in zip(params, expected, strict=True):
        torch.testing.assert_close(param, other, rtol=1e-6, atol=1e-7)
    assert report.share == pytest.approx(same.share)
    assert report.norm_before == pytest.approx(same.norm_before)
    assert report.norm_after == pytest.approx(same.norm_after)


def test_a_gradient_that_is_not_finite_spoils_its_own_tensor_alone(monkeypatch):
    params = [nn.Parameter(torch.ones(size)) for size in (20_000, 20_000)]
    optimizer = ClippedAdam(params, lr=0.01, clip="local", max_norm=1.0, fused=False)
    params[0].grad = torch.full((20_000,), 1e30)
    params[1].grad = torch.full((20_000,), torch.nan)
    optimizer.step()
    assert torch.isfinite(params[0]).all()
    assert optimizer.clip_report().norm_before != optimizer.clip_report().norm_before
