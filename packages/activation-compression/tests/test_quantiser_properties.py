"""The quantiser's contract: bounded error, no bias, exactness where promised, the same bits every way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from activation_compression import dequantize, kernels, quantize, rules
from activation_compression.quantizer import pack_gate
from finetune_common.errors import ConfigurationError

BITS = (1, 2, 4, 8)


@pytest.fixture(autouse=True)
def _as_written(request, monkeypatch):
    """The rules as written; compiled code has a test of its own."""
    if "compiled" not in request.node.name:
        monkeypatch.setattr(kernels, "COMPILE_FROM", 2**62)


def reference_steps(x: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The largest step that the definition allows: the group's range and bfloat16's own grid."""
    flat = x.float().reshape(-1)
    steps = torch.empty_like(flat)
    for start in range(0, len(flat), group):
        values = flat[start : start + group].double()
        low = values.min() - values.min().abs() * 2.0**-7
        steps[start : start + group] = float((values.max() - low) / (2**bits - 1) * (1 + 2.0**-7)) + 2.0**-126
    return steps.view(x.shape)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(0, 7), max_size=3),
    bits=st.sampled_from(BITS),
    group=st.integers(1, 70),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**40),
)
def test_round_trip_stays_within_one_step(shape, bits, group, scale, dtype, seed):
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(seed % 1000)) * scale).to(dtype)
    q = quantize(x, bits, group, seed)
    back = dequantize(q)
    assert (back.shape, back.dtype) == (x.shape, dtype)
    rounding = x.float().abs() * torch.finfo(dtype).eps + float(torch.finfo(dtype).smallest_normal)
    assert bool(((back.float() - x.float()).abs() <= reference_steps(x, bits, group) + 2 * rounding).all())
    assert dequantize(quantize(x, bits, group, seed)).equal(back)


@pytest.mark.parametrize("bits", BITS)
def test_unbiased_over_100_000_draws(bits):
    """Each value of a group of 20, the smallest and the largest too, within 4 standard errors (8 groups x 20
    values, Bonferroni: 4.5 would be 1e-3 in all)."""
    draws, group = 100_000, 20
    values = torch.linspace(-1.3, 2.1, group) ** 3
    back = dequantize(quantize(values.repeat(draws), bits, group, seed=bits)).view(draws, group).double()
    error = back.mean(0) - values.double()
    standard = back.std(0) / draws**0.5
    step = float(values.max() - values.min()) / (2**bits - 1)
    assert bool((error.abs() <= 4 * standard + step * 2.0**-16).all())


@pytest.mark.parametrize("bits", BITS)
def test_variance_is_that_of_stochastic_rounding(bits):
    """Var = s² f (1 - f), f the distance to the lower multiple in steps, within 4 standard errors."""
    draws = 20_000
    x = torch.tensor([0.0, 0.3, 0.55, 1.0])
    q = quantize(x.repeat(draws), bits, 4, seed=5)
    step = float(q.content.step[0])
    fraction = (x / step) % 1
    found = dequantize(q).view(draws, 4).var(0)
    spread = fraction * (1 - fraction)
    error = (spread * (1 - 4 * spread) / draws).sqrt()  # of the variance of a Bernoulli sample
    assert ((found / step**2 - spread).abs() <= 4 * error + 1e-6).all()


def test_random_numbers_are_independent_of_position_seed_and_stream():
    before = torch.get_rng_state()
    x = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(torch.tensor([1, 254, 1])).repeat(400)
    bits = [dequantize(quantize(x, 1, seed=s)).view(400, 256)[:, 1:255].round() for s in (0, 1, 12345)]
    assert torch.get_rng_state().equal(before)
    n = bits[0].numel()
    for a in bits:
        assert abs(float(a.mean()) - 0.5) < 5 * 0.5 / n**0.5 + 0.004  # 0.004: the step is rounded up
    pairs = [
        (bits[0], bits[1]),
        (bits[0], bits[2]),
        (bits[0][:, 1:], bits[0][:, :-1]),
        (bits[0][1:], bits[0][:-1]),
    ]
    pairs += [(bits[0][:, 32:64], bits[0][:, 64:96])]
    for a, b in pairs:
        a, b = a.reshape(-1).double(), b.reshape(-1).double()
        assert abs(float(((a - a.mean()) * (b - b.mean())).mean())) < 5 * 0.25 / len(a) ** 0.5


def test_uniform_numbers_fill_their_interval_evenly():
    u, v = rules.noise16((2000, 128), 0, torch.tensor([7, 9], dtype=torch.int32))
    for numbers in (u, v):
        counts = torch.histc(numbers.flatten(), 64, 0, 1).double()
        expected = numbers.numel() / 64
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < 63 + 5 * (2 * 63) ** 0.5
        assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1


def test_bytes_are_those_of_the_definition():
    x = torch.randn(1000, 256)
    for bits in BITS:
        assert quantize(x, bits).nbytes == 1000 * (256 * bits // 8 + 4)
    assert quantize(torch.randn(300), 4).nbytes == 2 * (128 + 4)


def test_layouts_come_back():
    base = torch.randn(6, 8, 10)
    views = {
        "transposed": base.transpose(0, 2),
        "slice": base[:, ::2, 1:7],
        "expanded": base[:, :1].expand(6, 5, 10),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "empty": base[:0],
        "number": torch.tensor(3.0),
        "windows": base.flatten().as_strided((20, 30), (5, 1)),
    }
    for name, x in views.items():
        back = dequantize(quantize(x, 8, 16))
        step = float(x.max() - x.min()) / 255 + 0.02 if x.numel() else 0
        assert back.shape == x.shape, name
        assert bool(((back - x).abs() <= step).all()), name
    assert dequantize(quantize(views["channels last"])).stride() == views["channels last"].stride()
    assert quantize(views["expanded"], 8, 64).nbytes == 64 + 4


def test_constant_groups():
    for value in (0.0, 1.0, -2.5, 1e30):
        x = torch.full((256,), value)
        assert bool(((dequantize(quantize(x, 2)) - x).abs() <= abs(value) * 2.0**-7).all())
    assert dequantize(quantize(torch.zeros(256), 1)).equal(torch.zeros(256))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_spoils_its_group_alone(bad):
    x = torch.randn(512)
    x[3] = bad
    back = dequantize(quantize(x))
    assert bool(back[:256].isnan().all())
    assert bool(back[256:].isfinite().all())


def test_half_precision_does_not_overflow():
    x = torch.tensor([65504.0, -65504.0, 1.0]).half().repeat(100)
    assert bool(dequantize(quantize(x, 4)).isfinite().all())


def test_exact_forms():
    flags = torch.rand(3, 1001) < 0.3
    q = quantize(flags, bits=2)
    assert dequantize(q).equal(flags)
    assert q.nbytes < flags.numel() / 8 + 64
    for x in (torch.arange(7), torch.randn(5, dtype=torch.float64), torch.tensor([1j])):
        assert dequantize(quantize(x)).equal(x)
    x = torch.randn(10)
    assert dequantize(quantize(x, bits=16)).equal(x)


def test_wrong_settings_are_refused():
    x = torch.randn(4)
    for settings_, message in (
        ({"bits": 3}, "bits"),
        ({"bits": 0}, "bits"),
        ({"group_size": 0}, "group_size"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            quantize(x, **settings_)
    with pytest.raises(ConfigurationError, match="to_dense"):
        quantize(torch.eye(3).to_sparse())


def slow_reference(x: np.ndarray, bits: int, u: np.ndarray) -> np.ndarray:
    """One group, element by element, in double precision."""
    low = float(torch.tensor(x.min()).bfloat16())
    if low > x.min():
        low = float(np.nextafter(np.float32(low), np.float32(-np.inf)))
        low = float(
            torch.tensor(low)
            .view(torch.int32)
            .add(0 if low > 0 else 0xFFFF)
            .bitwise_and(-65536)
            .view(torch.float32)
        )
    step = (float(x.max()) - low) / (2**bits - 1)
    coarse = float(torch.tensor(step, dtype=torch.float32).bfloat16())
    while coarse < step:
        coarse = float(torch.tensor(coarse * (1 + 2.0**-8)).bfloat16())
    return np.floor((x - low) / coarse + u) * coarse + low


@pytest.mark.parametrize("bits", BITS)
def test_agrees_with_a_slow_reference(bits):
    x = torch.randn(256, generator=torch.Generator().manual_seed(bits)).double().numpy().round(3)
    keys = torch.tensor([11, 13], dtype=torch.int32)
    codes, low, step = rules.encode(torch.tensor(x, dtype=torch.float32), bits, 256, keys)
    found = rules.decode(codes, low, step, bits, 256, torch.float32).numpy()
    parts = 8 // bits
    width = 256 // parts
    rows = [n for pair in range((parts + 1) // 2) for n in rules.noise16((1, width), pair, keys)]
    u = torch.cat(rows, dim=1).flatten()[:256].double().numpy()
    np.testing.assert_allclose(
        found, slow_reference(np.float64(np.float32(x)), bits, u), atol=float(step) * 1e-3
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("pieces", "shape", "axis"), [(8, (5, 3, 7), 1), (8, (5, 7, 3), 2), (None, (9, 32), 1)]
)
def test_few_elements_are_rounded_to_the_same_bits_at_once(bits, pieces, shape, axis, monkeypatch):
    drawn = torch.Generator().manual_seed(bits)
    parts = [torch.randn(shape, generator=drawn) for _ in range(pieces or rules.parts_of(bits))]
    parts[0][0] *= 1e4
    keys = torch.tensor([11, 13], dtype=torch.int32)
    at_once = rules.rounded(parts, bits, keys, axis)
    monkeypatch.setattr(rules, "FEW", 0)
    for found, expected in zip(at_once, rules.rounded(parts, bits, keys, axis), strict=True):
        assert found.dtype == expected.dtype
        assert found.equal(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("low", "high", "value"), [(0.0, math.inf, 1.0), (0.0, 6.0, 3.0), (-1.0, 0.5, -0.25)]
)
def test_a_compiled_gate_is_open_strictly_between_its_ends_and_for_nan(low, high, value):
    x = 4 * torch.randn(kernels.COMPILE_FROM + 256 + 17)
    x[:4] = torch.tensor([low, high, torch.nan, -torch.inf])
    flags = pack_gate(x, low, high)
    expected = torch.where((x > low) & (x < high) | x.isnan(), value, low)
    assert flags.unpack().equal(expected)
    assert flags.nbytes <= x.numel() / 8 + 64


def test_compiled_code_gives_the_same_bits():
    x = torch.randn(kernels.COMPILE_FROM + 3 * 256 + 17)
    x[3_700] = float("nan")
    compiled = quantize(x, 4, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "COMPILE_FROM", 2**62)
        eager = quantize(x, 4, seed=3)
        finite = torch.arange(len(eager.content.low)) != 3_700 // 256
        for a, b in zip(eager.content.tensors, compiled.content.tensors, strict=True):
            assert a.view(len(finite), -1)[finite].equal(b.view(len(finite), -1)[finite])
        expected = dequantize(eager)
    torch.testing.assert_close(dequantize(compiled), expected, rtol=0, atol=0, equal_nan=True)
