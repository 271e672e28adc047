"""Groups of neighbours, of columns, and rotated ones: from the definitions, with slow references."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from activation_compression import ActivationCompressor, kernels, rotation, rules
from activation_compression.grouping import Columns, Grouping, Neighbours
from activation_compression.keys import keys_of
from activation_compression.quantizer import Codes

WIDTHS = (1, 2, 4, 8)
GROUPINGS = (Neighbours(256), Neighbours(128, rotated=True), Columns(64, 40))


def back(x: Tensor, bits: int, grouping: Grouping, number: int = 0) -> Tensor:
    codes = Codes.pack(x, bits, grouping, keys_of(0, number, 1, x.device)[0])
    return codes.unpack()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_every_grouping_is_unbiased(grouping: Grouping, bits: int) -> None:
    """The mean over draws goes to x as 1/√n, for lengths that fill no group."""
    x = torch.randn(40 * 150, generator=torch.Generator().manual_seed(1)).exp()
    draws = torch.stack([back(x, bits, grouping, number) for number in range(64)])
    one = float((draws[0] - x).norm())
    assert one > 0
    assert float((draws.mean(0) - x).norm()) < 1.2 * one / math.sqrt(64)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_rotation_is_the_product_of_hadamards_matrix_and_signs(size: int) -> None:
    """As a matrix it is orthonormal, and its entries are those of Sylvester's construction but for signs."""
    mix, pieces = rotation.mixing(size), rules.PIECES
    columns = []
    for place in range(size):
        unit = torch.zeros(1, pieces, size // pieces)
        unit.view(-1)[place] = 1
        parts = [rotation._mixed(part, mix[0]) for part in unit.unbind(1)]
        columns.append(torch.stack(rotation._butterflies(rotation._signed(parts)), 1).view(-1))
    matrix = torch.stack(columns, 1)
    assert torch.allclose(matrix @ matrix.t(), torch.eye(size), atol=1e-6)
    assert torch.allclose(matrix.t(), rotation.matrix(size), atol=1e-6)
    signs = matrix.sign() * torch.from_numpy(hadamard(size)).float().sign()
    assert torch.equal(signs, signs[:1].expand(size, -1)), "column by column one sign"
    assert 0 < int((signs[0] < 0).sum()) < size


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_rotation_tames_an_outlier_at_the_same_bytes(bits: int) -> None:
    x = torch.randn(128 * 200, generator=torch.Generator().manual_seed(2))
    x[::128] = 60.0
    turned, plain = (
        Codes.pack(x, bits, Neighbours(128, r), keys_of(0, 0, 1, x.device)[0]) for r in (True, False)
    )
    assert turned.nbytes == plain.nbytes
    assert float((turned.unpack() - x).square().mean()) < 0.1 * float((plain.unpack() - x).square().mean())


def test_a_constant_group_stays_nearly_constant_after_a_rotation() -> None:
    """The signs' own transform is flat: a mean far from 0 makes no outlier in the rotated group."""
    x = torch.full((128 * 4,), 3.0)
    assert float((back(x, 4, Neighbours(128, rotated=True)) - x).abs().max()) < 3.0


@pytest.mark.parametrize(("bits", "rows"), [(1, 64), (2, 150), (4, 64), (4, 777), (8, 33)])
def test_a_column_is_rounded_within_its_own_range(bits: int, rows: int) -> None:
    """Each element lies within one step of its column's group: ranges of other columns do not matter."""
    columns = 24
    scales = 10.0 ** torch.arange(-6, 6, 0.5)
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * scales
    grouping = Columns(64, columns)
    found = back(x.reshape(-1), bits, grouping).view(rows, columns)
    groups, each, _ = grouping._cut(x.numel())
    whole = groups * each
    chunks = list(x[:whole].view(groups, each, columns).unbind()) + ([x[whole:]] if whole < rows else [])
    start = 0
    for chunk in chunks:
        width = chunk.amax(0) - chunk.amin(0)
        off = (found[start : start + len(chunk)] - chunk).abs()
        allowed = 1.02 * width / (2**bits - 1) + 2**-7 * chunk.abs().amax(0)
        assert bool((off <= allowed).all())
        start += len(chunk)
    assert start == rows


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("grouping", [*GROUPINGS, Columns(64, 1), Neighbours(100, rotated=True)])
def test_bytes_and_sums_are_those_of_the_groups(grouping: Grouping, bits: int) -> None:
    x = torch.randn(40 * 131)
    codes = Codes.pack(x, bits, grouping, keys_of(0, 0, 1, x.device)[0])
    count, groups = grouping.lengths(x.numel(), bits)
    assert (codes.codes.nbytes, codes.low.numel(), codes.step.numel()) == (count, groups, groups)
    sums = grouping.sums(x, bits)
    assert sums.numel() == groups
    assert torch.allclose(sums.sum(), x.sum(), atol=1e-3)


@pytest.mark.parametrize("size", [1, 7, 12, 64, 256])
@pytest.mark.parametrize("rows", [3, 8, 45, 315])
def test_every_minimum_and_step_of_columns_belongs_to_a_group(size: int, rows: int) -> None:
    grouping, x = Columns(size, 24), torch.randn(rows * 24)
    taken, number = grouping.lengths(x.numel(), 4)
    codes = torch.zeros(taken, dtype=torch.uint8)
    low, step = torch.full((2, number), torch.nan, dtype=torch.bfloat16).unbind()
    grouping.write(x, codes, low, step, 4, torch.tensor([1, 2], dtype=torch.int32))
    assert step.isfinite().all()
    assert low.isfinite().all()
    read = grouping.read(x.numel(), x.dtype, codes, low, step, 4)
    assert ((read - x).abs() <= 1.01 * grouping.each(step.float(), x.numel(), 4)).all()


def test_compiled_columns_give_the_bits_of_written_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x, grouping = torch.randn(256 * 600), Columns(256, 256)
    compiled = Codes.pack(x, 4, grouping, keys_of(0, 0, 1, x.device)[0])
    out = compiled.unpack()
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    written = Codes.pack(x, 4, grouping, keys_of(0, 0, 1, x.device)[0])
    assert torch.equal(compiled.codes, written.codes)
    assert torch.equal(compiled.low, written.low)
    assert torch.equal(out, written.unpack())


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_of_columns_lie_in_either_order(bits: int) -> None:
    """Rows side by side for a CPU, groups side by side for a GPU: ends are the same, values within a step."""
    x = torch.randn(3, rules.PIECES, 4, 20)
    for first in (False, True):
        codes, low, step = rules.encode_columns(x, bits, keys_of(0, 0, 1, x.device)[0], first)
        assert codes.shape == ((3, 20, 4) if first else (3, 4, 20))
        assert codes.is_contiguous()
        found = rules.decode_columns(codes, low, step, bits, x.dtype, first)
        assert bool(((found - x).abs() <= 1.01 * step.float()[:, None, None]).all())


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_kernel_that_rotates_rounds_like_the_matrix_product(bits: int) -> None:
    """The form for GPUs: each element comes back within what one step in the rotated group allows."""
    x = torch.randn(64 * 50, generator=torch.Generator().manual_seed(4))
    mix, keys = rotation.mixing(64), keys_of(0, 0, 1, x.device)[0]
    codes, low, step = rotation.encode(x, bits, 64, keys, mix)
    found = rotation.decode(codes, low, step, bits, x.dtype, mix).view(-1, 64)
    turn = rotation.matrix(64)
    off = ((found - x.view(-1, 64)) @ turn).abs()
    assert bool((off <= step.float().view(-1, 1) * 1.001 + 1e-5).all())


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_what_is_not_finite_comes_back_as_nan_in_its_group_alone(grouping: Grouping) -> None:
    x = torch.randn(40 * 256)
    x[5] = torch.inf
    found = back(x, 4, grouping)
    assert bool(found[5].isnan())
    assert 0.5 < float(found.isfinite().float().mean()) < 1


class Residual(nn.Module):
    """Tokens through a normalisation and a gated map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.second, self.last = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.first(x)
        return self.last(nn.functional.gelu(self.second(self.norm(h)))).square().mean()


def error(model: nn.Module, x: Tensor, **settings: object) -> float:
    def gradient(level: str, **more: object) -> Tensor:
        compressor = ActivationCompressor(model, level, **more)  # type: ignore[arg-type]
        with compressor:
            loss = model(x)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    plain = gradient("L0")
    return float((gradient("L1", **settings) - plain).norm() / plain.norm())


def test_huge_features_of_single_tokens_do_not_drown_the_others() -> None:
    """At 4 bits a hundredfold feature costs rotated groups less than half of what it costs published ones."""
    torch.manual_seed(0)
    model, x = Residual(128), torch.randn(512, 128)
    x[:, 7] *= 100
    assert error(model, x) < 0.5 * error(model, x, derive=False)


def test_rows_near_zero_at_a_small_width_are_groups_of_their_own() -> None:
    """A normalisation magnifies a small row; rounding in the range of a large neighbour would drown it."""
    torch.manual_seed(0)
    model, x = Residual(64), torch.randn(512, 64)
    x[::2] *= 1e-3
    assert error(model, x) < 0.3


@pytest.mark.slow
def test_real_weights_at_four_bits(minilm_dir: Path, glue_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniLM, eight rows of MRPC in training: the error of one gradient is half the published grouping's."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(minilm_dir).train()
    lines = (glue_dir / "MRPC" / "train.tsv").read_text(encoding="utf-8-sig").splitlines()[1:9]
    rows = [line.split("\t") for line in lines]
    tokens = transformers.AutoTokenizer.from_pretrained(minilm_dir)(
        [row[3] for row in rows], [row[4] for row in rows], padding=True, return_tensors="pt"
    )
    labels = torch.tensor([int(row[0]) for row in rows])

    def gradient(level: str, **settings: Any) -> Tensor:
        torch.manual_seed(1)
        with ActivationCompressor(model, level, **settings):
            loss = model(**tokens, labels=labels).loss
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    plain = gradient("L0")
    ours, published = (
        float((gradient("L1", derive=derive) - plain).norm() / plain.norm()) for derive in (True, False)
    )
    assert ours < 0.26
    assert ours < 0.65 * published
