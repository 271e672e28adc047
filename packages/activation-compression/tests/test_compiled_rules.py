"""What a compiled model packs: by the backward formula, never by guess.

Graphs run as they are here, through torch's partition and the packing, and no code is generated: so a test
takes a second. `test_compiled_models.py` has Inductor.
"""

import pytest
import torch
import torch.nn.functional as F
from graphs import backend, check_replicas, compiled, relative
from torch import nn
from torch.utils.checkpoint import checkpoint

from activation_compression import ActivationCompressor, compile_options
from finetune_common.errors import ConfigurationError
from finetune_common.testing import run_two_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor:UserWarning"
    ),  # torch, after a graph break
]


def gradients(function, *inputs, seed=3):
    """Return the gradients of the inputs that have one, and of the function's parameters."""
    torch.manual_seed(seed)
    own = list(function.parameters()) if isinstance(function, nn.Module) else []
    asked = [x for x in [*inputs, *own] if x.requires_grad]
    return torch.autograd.grad(function(*inputs).sum(), asked)


def pair(function, *inputs, level="L1", seed=3, **settings):
    """Return plain gradients, gradients under a level, and the options."""
    options = compile_options(level, **settings)
    plain = gradients(compiled(function), *inputs, seed=seed)
    return plain, gradients(compiled(function, options), *inputs, seed=seed), options


def rows(options):
    return {f"{row.module}:{row.operation}": row for row in options.stats.rows}


def random(*shape, scale=1.0):
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))).requires_grad_()


class Feed(nn.Sequential):
    def __init__(self, *middle):
        super().__init__(nn.Linear(64, 128), *middle, nn.Linear(128, 64))


SINGULAR = {
    "logarithm": lambda x: x.sigmoid().log(),
    "reciprocal": lambda x: 1 / (2 + x.sin()),
    "root": lambda x: (1 + x.square()).sqrt(),
    "power": lambda x: (1 + x.square()) ** 0.3,
    "arc sine": lambda x: (0.9 * x.tanh()).asin(),
    "norm": lambda x: x.sin().norm(dim=-1),
    "largest": lambda x: x.sin().amax(-1),
    "absolute": lambda x: x.sin().abs() * 2,
    "probability times its logarithm": lambda x: x.softmax(-1) * x.softmax(-1).log(),
}


@pytest.mark.parametrize("name", SINGULAR)
def test_what_the_table_does_not_allow_is_exact(name):
    """Rounded, a value next to the singular point would give a gradient without bound."""
    weight, x = random(64, 64, scale=0.5), random(32, 64)
    plain, packed, _ = pair(lambda x, w: SINGULAR[name](x @ w), x, weight)
    assert all(relative(p, q) < 0.5 for p, q in zip(packed, plain, strict=True))


@pytest.mark.parametrize(
    ("function", "backward"),
    [
        (torch.log, lambda x: 1 / x),
        (torch.sqrt, lambda x: 0.5 / x.sqrt()),
        (torch.reciprocal, lambda x: -1 / x.square()),
        (lambda x: x**-3, lambda x: -3 / x**4),
    ],
)
def test_a_denominator_is_kept_bit_for_bit(function, backward):
    """x has a wide range in each group: 4 bits of it would change the gradient many times over."""
    base = torch.logspace(-3, 1, 2048)
    x = base.clone().requires_grad_()
    _, [found], options = pair(lambda x: function(2 * x), x)
    torch.testing.assert_close(found, 2 * backward(2 * base), rtol=1e-4, atol=0)
    assert all(row.bits in (32, 64, 1) for row in options.stats.rows)


@pytest.mark.parametrize("gate", [nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardtanh(), nn.ReLU6()])
def test_a_gate_opens_as_in_the_forward_pass(gate):
    """The first bias's gradient reads the gate and the second weight alone, so it is exact at two bits."""
    model, x = Feed(gate), random(128, 64)
    plain, packed, options = pair(model, x, level="L1.2")
    names = [name for name, _ in model.named_parameters()]
    index = 1 + names.index("0.bias")
    assert torch.equal(packed[index], plain[index])
    assert not torch.equal(packed[1 + names.index("2.weight")], plain[1 + names.index("2.weight")])
    assert any(row.bits == 1 and row.stored_bytes == 128 * 128 // 8 for row in options.stats.rows)


@pytest.mark.parametrize(
    "gate", [nn.GELU(), nn.SiLU(), nn.Tanh(), nn.Sigmoid(), nn.Softplus(), nn.GELU("tanh")]
)
def test_smooth_functions_are_rounded(gate):
    plain, packed, options = pair(Feed(gate), random(128, 64), level="L1.1")
    assert all(relative(p, q) < 0.02 for p, q in zip(packed, plain, strict=True))
    assert any(row.bits == 8 for row in options.stats.rows)
    assert options.stats.ratio > 1.5


def test_the_mean_of_many_steps_is_the_exact_gradient():
    """The error of the mean of 30 draws is that of one, by the root of 30."""
    model, x = Feed(nn.GELU()), random(128, 64)
    options = compile_options("L1.2", derive=False)
    plain = torch.cat([g.flatten() for g in gradients(compiled(model), x)])
    packed = compiled(model, options)
    draws = torch.stack([torch.cat([g.flatten() for g in gradients(packed, x)]) for _ in range(30)])
    noise = draws.var(0).sum().sqrt() / 30**0.5
    assert (draws.mean(0) - plain).norm() < 1.3 * noise
    assert len({float(draw.sum()) for draw in draws}) == 30


def test_wide_scores_do_not_explode():
    """Fused attention is run again from what is rounded, so that probabilities sum to one."""
    q, v = random(2, 4, 64, 32), random(2, 4, 64, 32, scale=0.1)
    k = q.detach().flip(0).requires_grad_()
    plain, packed, options = pair(
        lambda q, k, v: F.scaled_dot_product_attention(q @ q.mT @ q / 8, k @ k.mT @ k / 32, v @ v.mT @ v),
        q,
        k,
        v,
    )
    assert all(relative(p, g) < 2 for p, g in zip(packed, plain, strict=True))
    assert any("attention" in row.derived_from for row in options.stats.rows)


def test_a_softmax_crosses_as_probabilities():
    weight, x = random(64, 64), random(128, 64, scale=4.0)
    plain, packed, options = pair(lambda x, w: ((x @ w).softmax(-1) @ w).square(), x, weight)
    assert any(row.operation == "softmax" and row.bits == 4 for row in options.stats.rows)
    assert all(relative(p, q) < 0.5 for p, q in zip(packed, plain, strict=True))


def test_dropout_draws_the_same_masks_and_keeps_them_in_bits():
    model, x = Feed(nn.Dropout(0.3)), random(128, 64)
    plain, packed, options = pair(model, x, level="lossless")
    assert all(torch.equal(p, q) for p, q in zip(packed, plain, strict=True))
    [mask] = [row for row in options.stats.rows if row.dtype == "bool"]
    assert (mask.bits, mask.original_bytes, mask.stored_bytes) == (1, 128 * 128, 128 * 16)


def test_lossless_stores_less_and_changes_nothing():
    model = nn.Sequential(Feed(nn.GELU()), nn.LayerNorm(64), nn.Dropout(0.1), Feed(nn.SiLU()))
    x = random(16, 8, 64)
    plain, packed, options = pair(model, x, level="lossless")
    assert all(torch.equal(p, q) for p, q in zip(packed, plain, strict=True))
    thorough = compile_options("lossless", derive=False)
    gradients(compiled(model, thorough), x)
    assert options.stats.stored_bytes < 0.8 * thorough.stats.stored_bytes


def test_views_of_one_tensor_are_stored_once():
    weights = [random(64, 64, scale=0.1) for _ in range(3)]

    def function(x, first, *weights):
        hidden = x @ first
        return sum((hidden.view(-1, 64) @ w).sum() for w in weights) + torch.bmm(hidden.mT, hidden).sum()

    x = random(4, 32, 64)
    plain, packed, options = pair(function, x, *weights)
    [row] = [row for row in options.stats.rows if row.bits == 4]
    assert row.original_bytes == x.nbytes
    assert all(relative(p, q) < 0.3 for p, q in zip(packed, plain, strict=True))


def test_what_has_no_gradient_is_not_rounded():
    """An additive mask, as attention has, is computed from an input that is not trained."""
    x, mask = random(64, 64), torch.randn(64, 64)
    _, _, options = pair(lambda x, m: (x.sin() * (m.cos() * 3)).tanh(), x, mask)
    assert all(row.bits in (32, 1) for row in options.stats.rows if row.operation == "cos")


@pytest.mark.parametrize("group_size", [64, 100, 256, 1000])
def test_every_group_size_and_length(group_size):
    model = Feed(nn.GELU())
    plain, packed, _ = pair(model, random(37, 64), level="L1.1", group_size=group_size)
    assert all(relative(p, q) < 0.05 for p, q in zip(packed, plain, strict=True))


def test_half_precision_under_autocast():
    model, x = Feed(nn.GELU(), nn.LayerNorm(128)), random(128, 64)

    def function(x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    plain, packed, options = pair(function, x)
    assert relative(packed[0], plain[0]) < 0.3
    assert any(row.dtype == "bfloat16" and row.bits == 4 for row in options.stats.rows)


def test_lengths_change_without_a_new_partition(monkeypatch):
    """Ten shapes, two partitions: the second one has symbols for lengths."""
    options, model = compile_options("L1.1"), Feed(nn.GELU(), nn.LayerNorm(128), nn.Dropout(0.1))
    partitioner, calls = type(options["custom_partitioner_fn"]), []
    original = partitioner.__call__

    def counted(self, *args, **kwargs):
        calls.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(partitioner, "__call__", counted)
    packed = compiled(model.eval(), options)
    for number, length in zip(range(16, 6, -1), range(30, 50, 2), strict=True):
        x = random(number, length, 64)
        found, expected = gradients(packed, x), gradients(model, x)
        assert all(relative(p, q) < 0.05 for p, q in zip(found, expected, strict=True))
    assert len(calls) <= 2
    assert any(row.shape[0] == 7 * 48 for row in options.stats.rows)


def test_a_graph_break_changes_no_number_much():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Feed(nn.GELU()), Feed(nn.GELU())

        def forward(self, x):
            hidden = self.first(x)
            torch._dynamo.graph_break()
            return self.second(hidden)

    plain, packed, options = pair(Two(), random(128, 64), level="L1.1")
    assert all(relative(p, q) < 0.02 for p, q in zip(packed, plain, strict=True))
    assert any(row.bits == 8 for row in options.stats.rows)


@pytest.mark.parametrize(("level", "error"), [("lossless", 0), ("L1.1", 0.02), ("L1", 0.3)])
def test_a_checkpointed_region_drops_out_again_what_it_dropped(level, error):
    """The random state crosses too, and is left as it is."""

    class Region(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Feed(nn.GELU(), nn.Dropout(0.3)), Feed(nn.GELU(), nn.Dropout(0.3))

        def forward(self, x):
            for part in (self.first, self.second):
                x = x + checkpoint(part, x, use_reentrant=False)
            return x.square()

    plain, packed, options = pair(Region(), random(128, 64), level=level)
    assert all(relative(p, q) <= error for p, q in zip(packed, plain, strict=True))
    assert not any(row.shape == (128, 128) for row in options.stats.rows)  # what runs again is not kept


def test_accumulated_passes_round_anew_and_keep_what_they_have():
    model, x = Feed(nn.GELU()), random(128, 64)
    packed = compiled(model, compile_options("L1"))
    both = packed(x).sum() + packed(x).sum()
    twice = torch.autograd.grad(both, list(model.parameters()))
    once = gradients(compiled(model), x)[1:]
    assert all(relative(p, 2 * q) < 0.3 for p, q in zip(twice, once, strict=True))


def test_a_resumed_state_rounds_as_the_run_would_have():
    model, x = Feed(nn.GELU()), random(128, 64)
    options = compile_options("L1", seed=7)
    packed = compiled(model, options)
    gradients(packed, x)
    state = options.state_dict()
    expected, other = gradients(packed, x), gradients(packed, x)
    options.load_state_dict(state)
    assert all(torch.equal(p, q) for p, q in zip(gradients(packed, x), expected, strict=True))
    assert any(not torch.equal(p, q) for p, q in zip(other, expected, strict=True))


def test_given_widths_and_excluded_tensors():
    model, x = Feed(nn.Tanh()), random(128, 64)
    _, _, options = pair(model, x)
    [name] = [f"{row.module}:{row.operation}" for row in options.stats.rows if row.bits == 4]
    _, _, given = pair(model, x, level="L2", widths={f"{name}:0": 2})
    assert rows(given)[name].bits == 2
    plain, packed, kept = pair(model, x, exclude=[name])
    assert rows(kept)[name].bits == 32
    assert all(torch.equal(p, q) for p, q in zip(packed, plain, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exclude": ["0:linear"]}, "exclude: '0:linear' matches no tensor that crosses.*0:addmm"),
        ({"level": "L2", "widths": {"0:addm:0": 8}}, "widths: '0:addm:0' .*did you mean '0:addmm:0'"),
    ],
)
def test_a_name_that_no_tensor_has_is_refused_as_soon_as_that_is_known(settings, message):
    options = compile_options(**settings)
    model, x = compiled(Feed(nn.GELU()), options), random(128, 64)
    model(x).sum().backward()
    with pytest.raises(ConfigurationError, match=message):
        _ = options.stats
    with pytest.raises(ConfigurationError, match=message):
        model(x)


def test_of_a_graph_that_layers_share_every_layer_counts():
    """As where each layer is compiled by itself: bytes are those of all layers, in every step."""
    options = compile_options("L1")
    torch._dynamo.reset()
    layers = [torch.compile(Feed(nn.GELU()), backend=backend(options)) for _ in range(3)]
    stored = []
    for depth in (1, 3, 3):
        x = random(128, 64)
        for layer in layers[:depth]:
            x = layer(x)
        x.sum().backward()
        stored.append(options.stats.stored_bytes)
    _, _, one = pair(Feed(nn.GELU()), random(128, 64))
    assert stored[0] == one.stats.stored_bytes
    assert stored[1] == stored[2] > 2.5 * stored[0]


def test_rows_are_those_of_the_last_pass():
    """A pass without dropout has no masks, whatever ran before; two that wait for backward both count."""
    options, x = compile_options("L1"), random(128, 64)
    model = Feed(nn.Dropout(0.3))
    packed = compiled(model, options)
    packed(x).sum().backward()
    with_masks = options.stats.stored_bytes
    assert any(row.dtype == "bool" for row in options.stats.rows)
    first, second = packed(x), packed(x)
    assert options.stats.stored_bytes == 2 * with_masks
    (first + second).sum().backward()
    model.eval()
    packed(x).sum().backward()
    assert not any(row.dtype == "bool" for row in options.stats.rows)


def test_small_tensors_are_kept():
    _, _, options = pair(Feed(nn.GELU()), random(4, 64), min_elements=4 * 128 + 1)
    assert all(row.bits == 32 for row in options.stats.rows)


def test_rows_name_modules_and_count_bytes():
    model = Feed(nn.GELU())
    _, _, options = pair(model, random(128, 64))
    found = rows(options)
    assert set(found) == {"0:addmm", ":input"}
    row = found["0:addmm"]
    assert (row.shape, row.dtype, row.bits) == ((128, 128), "float32", 4)
    codes, groups = 128 * 128 // 2, 128 * 4  # half a byte an element; a minimum and a step each column
    assert (row.original_bytes, row.stored_bytes) == (128 * 128 * 4, codes + groups)


@pytest.mark.parametrize(
    ("level", "settings", "message"),
    [
        ("L4", {}, "L4"),
        ("L0", {}, "lossless, L1"),
        ("swap", {}, "lossless, L1"),
        ("L2", {}, "widths="),
        ("L1", {"widths": {"0:addmm:0": 3}}, "3"),
        ("L1", {"group_size": 0}, "group_size"),
        ("L1", {"seed": -1}, "seed"),
    ],
)
def test_wrong_settings_are_refused(level, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        compile_options(level, **settings)


def test_the_eager_compressor_says_how_to_compress_a_compiled_model():
    model = nn.Linear(4, 4)
    with pytest.raises(ConfigurationError, match="compile_options"):
        ActivationCompressor(torch.compile(model))


@pytest.mark.slow
def test_two_processes_have_one_gradient():
    run_two_processes(check_replicas)
