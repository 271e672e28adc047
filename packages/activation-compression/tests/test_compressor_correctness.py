"""What the compressor may touch, what it must not, and that gradients stay right in every way of using it."""

import gc
import threading
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from activation_compression import ActivationCompressor, compress_activations
from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter

BEST = torch.zeros(64, dtype=torch.long)


def mlp(width=64, depth=3, dropout=0.0):
    torch.manual_seed(0)
    layers = [[nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)] for _ in range(depth)]
    return nn.Sequential(*(m for layer in layers for m in layer), nn.Linear(width, 1))


def gradients(model, level, x, **settings):
    model.zero_grad()
    torch.manual_seed(1)
    compressor = ActivationCompressor(model, level, **settings)
    with compressor:
        loss = model(x).square().mean()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()], compressor


def plain_gradients(model, x):
    model.zero_grad()
    torch.manual_seed(1)
    model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


def relative_error(found, expected):
    squared = sum(float((a - b).square().sum()) for a, b in zip(found, expected, strict=True))
    return (squared / sum(float(b.square().sum()) for b in expected)) ** 0.5


@pytest.mark.parametrize("settings", [{"level": "L0"}, {"level": "L1", "bits": 32}])
def test_no_compression_gives_the_plain_gradient_bit_for_bit(settings):
    model, x = mlp(dropout=0.1), torch.randn(64, 64)
    found, compressor = gradients(model, x=x, **settings)
    assert all(a.equal(b) for a, b in zip(found, plain_gradients(model, x), strict=True))
    if settings["level"] == "L0":
        assert compressor.stats.ratio == 1


def test_more_bits_are_closer():
    model, x = mlp(dropout=0.1), torch.randn(64, 64)
    expected = plain_gradients(model, x)
    errors = [relative_error(gradients(model, level, x)[0], expected) for level in ("L1.2", "L1", "L1.1")]
    assert errors[0] > 2 * errors[1] > 8 * errors[2] > 0


GATED = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "leaky in place": lambda: nn.LeakyReLU(0.2, inplace=True),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.25, 0.5),
}


@pytest.mark.parametrize("gate", GATED.values(), ids=GATED)
@pytest.mark.parametrize("level", ["L1.2", "L2.2"])
def test_where_a_rectifier_lets_the_gradient_through_is_kept_exactly(gate, level):
    """Small outputs may round to zero, yet what reaches the input is the plain gradient bit for bit."""
    scale = torch.linspace(-2, 8, 4096).view(16, 256).requires_grad_()
    x = (0.01 * torch.randn(16, 256, generator=torch.Generator().manual_seed(0))).exp()
    model, weight = gate(), torch.randn(16, 256)
    found = []
    for context in (nullcontext(), ActivationCompressor(model, level)):
        scale.grad = None
        with context as compressor:
            loss = (model(scale * 1.0) * x * weight).sum()
        loss.backward()
        found.append(scale.grad)
    assert found[0].equal(found[1])
    assert found[0].count_nonzero() > 0
    [row] = [row for row in compressor.stats.rows if row.bits == 1]
    assert row.stored_bytes <= 4096 / 8 + 8


def test_what_a_rectifier_let_through_reaches_the_layer_before_it_without_bias():
    """The mean over many roundings nears the plain gradient: a gate read from rounded outputs would not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    x = torch.randn(64, 32, requires_grad=True) * 1.0
    expected = plain_gradients(model, x.detach())
    draws = [gradients(model, "L1.2", x.detach(), seed=seed)[0] for seed in range(200)]
    mean = [torch.stack(own).mean(0) for own in zip(*draws, strict=True)]
    one = sum(relative_error(draw, expected) for draw in draws) / len(draws)
    assert relative_error(mean, expected) < 2 * one / 200**0.5


def test_automatic_precision_measures_what_follows_a_rectifier():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    compressor, x = ActivationCompressor(model, "L2"), torch.randn(64, 64)
    widths = compressor.adapt(lambda: model(x).square().mean())
    assert set(widths) == {"2:linear:0", "4:linear:0"}
    assert all(value > 0 for value in compressor.log[0]["sensitivities"].values())


def test_weight_gradient_of_a_linear_layer_is_unbiased():
    """dW = gᵀ Q(x) is linear in what was saved: within 4 standard errors over 400 draws, in every element."""
    torch.manual_seed(0)
    layer, x, target = nn.Linear(64, 4), torch.randn(32, 64, requires_grad=True) * 3, torch.randn(32, 4)
    expected = torch.autograd.grad((layer(x) * target).sum(), layer.weight)[0]
    draws = []
    for seed in range(400):
        with ActivationCompressor(layer, "L1.2", seed=seed):
            loss = (layer(x) * target).sum()
        draws.append(torch.autograd.grad(loss, layer.weight)[0])
    stacked = torch.stack(draws).double()
    standard = stacked.std(0) / len(draws) ** 0.5
    z = (stacked.mean(0) - expected.double()) / standard
    assert float(standard.min()) > 0
    assert float(z.abs().max()) < 5  # 256 elements
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / 256) ** 0.5


def test_a_tensor_saved_by_three_operations_is_stored_once():
    torch.manual_seed(0)
    q, k, v = (nn.Linear(64, 64) for _ in range(3))
    model = nn.ModuleList([q, k, v])
    with ActivationCompressor(model, "L1") as compressor:
        h = torch.randn(64, 64, requires_grad=True).tanh()
        loss = (q(h) + k(h.view(1, 64, 64)).view(64, 64) + v(h)).sum()
    rows = [row for row in compressor.stats.rows if row.bits == 4]
    assert [(row.operation, row.original_bytes) for row in rows] == [("tanh", 64 * 64 * 4)]
    loss.backward()


def test_original_bytes_are_those_that_the_meter_counts():
    model, x = mlp(dropout=0.1), torch.randn(64, 64)
    with SavedTensorMeter(model) as meter:
        model(x).square().mean()
    with ActivationCompressor(model, "L1") as compressor:
        model(x).square().mean()
    assert compressor.stats.original_bytes == meter.bytes


def test_masks_of_dropout_take_one_bit_and_are_exact():
    layer = nn.Dropout(0.25)
    x = torch.randn(64, 64, requires_grad=True)
    torch.manual_seed(3)
    layer(x).sum().backward()
    expected, x.grad = x.grad, None
    torch.manual_seed(3)
    with compress_activations(layer, "L1.2") as compressor:
        loss = layer(x).sum()
    loss.backward()
    assert x.grad.equal(expected)
    [row] = compressor.stats.rows
    assert (row.operation, row.bits, row.stored_bytes) == ("dropout", 1, 64 * 64 // 8 + 8)


def test_parameters_are_never_compressed_whatever_their_view_or_dtype():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 64))
            self.other = self.weight
            self.register_buffer("table", torch.randn(64, 64))

        def forward(self, x):
            x = x @ self.weight.t() @ self.other[:, :32] @ self.other[:32]
            return (x * self.table).sum()

    model = Tied()
    x = torch.randn(64, 64, requires_grad=True)
    expected = torch.autograd.grad(model(x), x)[0]
    with ActivationCompressor(model, "L1.2"):
        loss = model(x)
    assert torch.autograd.grad(loss, x)[0].equal(expected)
    model.weight.data = model.weight.data.clone() * 2  # another storage after construction
    model.other = model.weight
    expected = torch.autograd.grad(model(x), x)[0]
    with ActivationCompressor(model, "L1.2") as compressor:
        loss = model(x)
    assert torch.autograd.grad(loss, x)[0].equal(expected)
    layer = nn.Linear(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.autograd.grad(layer(x).float().sum(), x)[0]
        with compress_activations(layer, "L1.2"):
            loss = layer(x).float().sum()
    assert torch.autograd.grad(loss, x)[0].equal(expected)
    assert compressor.stats.stored_bytes > 0


def test_an_address_used_again_is_another_tensor():
    """Each tensor is freed once packed and the next one takes its place; all stand for their own values."""
    weight = torch.randn(64, 64, requires_grad=True)
    addresses, sums = set(), []
    with ActivationCompressor(nn.Identity(), "L1.1"):
        outputs = []
        for number in range(20):
            h = weight * number
            addresses.add(h.data_ptr())
            outputs.append(h.square().sum())
            del h
    assert len(addresses) < 20
    for number, output in enumerate(outputs):
        [grad] = torch.autograd.grad(output, weight)
        sums.append(relative_error([grad], [2 * number**2 * weight.detach()]) if number else 0)
    assert max(sums) < 0.02


def test_a_change_in_place_is_another_tensor():
    x = torch.rand(64, 64, requires_grad=True)
    with ActivationCompressor(nn.Identity(), "L1.1"):
        h = x * 1.0
        before = h.square()
        h.mul_(-3)
        after = h.square()
    [grad] = torch.autograd.grad((before + after).sum(), x)
    assert relative_error([grad], [2 * x.detach() + 18 * x.detach()]) < 0.02


def test_changing_a_kept_tensor_in_place_is_an_error():
    layer = nn.Linear(64, 64)
    x = torch.randn(64, 64, requires_grad=True)
    with compress_activations(layer):
        loss = layer(x.tanh()).sum()
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_memory_goes_and_comes_back_one_tensor_at_a_time():
    x = torch.randn(64, 64, requires_grad=True)
    with ActivationCompressor(nn.Identity(), "L1") as compressor:
        h = x
        for _ in range(4):
            h = (h * h).sin()
        loss = h.sum()
    kept = list(compressor.store.table.values())
    assert len(kept) >= 4
    assert all(stored._block is None for stored in kept)
    loss.backward()
    assert all(stored._block is None for stored in kept)
    del loss, h, kept
    gc.collect()
    assert len(compressor.store.table) == 0


def test_double_backward_and_retain_graph():
    model, x = mlp(depth=1), torch.randn(64, 64, requires_grad=True)
    penalty = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0].square().sum()
    expected = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
    compressor = ActivationCompressor(model, "L1.1")
    with compressor:
        loss = model(x).square().sum()
        penalty = torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()
    first = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True, retain_graph=True)
    second = torch.autograd.grad(penalty, list(model.parameters()), allow_unused=True)
    pairs = [(a, b) for a, b in zip(first, expected, strict=True) if b is not None]
    assert relative_error(*zip(*pairs, strict=True)) < 0.05
    assert all(a is b is None or a.equal(b) for a, b in zip(first, second, strict=True))


def test_several_forwards_before_a_backward_accumulate():
    model, x = mlp(), torch.randn(4, 64, 64)
    model.zero_grad()
    sum(model(part).square().mean() for part in x).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compressor, losses = ActivationCompressor(model, "L1.1"), []
    for part in x:
        with compressor:
            losses.append(model(part).square().mean())
    sum(losses).backward()
    assert relative_error([p.grad for p in model.parameters()], expected) < 0.02


def test_an_exception_leaves_nothing_behind():
    model, x = mlp(), torch.randn(64, 64)
    compressor = ActivationCompressor(model, "L1")
    with pytest.raises(RuntimeError, match="cannot be multiplied"), compressor:
        model(model(x))
    plain = plain_gradients(model, x)
    model.zero_grad()
    with SavedTensorMeter(model):
        model(x).square().mean().backward()
    assert all(p.grad.equal(g) for p, g in zip(model.parameters(), plain, strict=True))
    with compressor:
        model(x).square().mean().backward()


def test_checkpointed_regions_keep_compressed_inputs():
    model = mlp(dropout=0.1)
    x = torch.randn(64, 64)
    expected = plain_gradients(model, x)

    def forward():
        h = x
        for block in model:
            h = checkpoint(block, h, use_reentrant=False)
        return h.square().mean()

    model.zero_grad()
    torch.manual_seed(1)
    with ActivationCompressor(model, "L1.1") as compressor:
        loss = forward()
    loss.backward()
    assert relative_error([p.grad for p in model.parameters()], expected) < 0.1
    assert {row.bits for row in compressor.stats.rows if row.original_bytes > 1024} == {8, 32}


def test_backward_in_another_thread_and_forward_in_several():
    model, x = mlp(), torch.randn(64, 64)
    expected = plain_gradients(model, x)
    model.zero_grad()
    compressor, losses = ActivationCompressor(model, "L1.1"), []

    def forward():
        with compressor:
            losses.append(model(x).square().mean() / 4)

    for work in (forward, lambda: sum(losses).backward()):
        threads = [threading.Thread(target=work) for _ in range(4 if work is forward else 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert relative_error([p.grad for p in model.parameters()], expected) < 0.02


def test_the_run_keeps_its_random_numbers():
    model, x = mlp(dropout=0.3), torch.randn(64, 64)
    torch.manual_seed(5)
    model(x)
    expected = torch.get_rng_state()
    torch.manual_seed(5)
    with ActivationCompressor(model, "L1"):
        loss = model(x).sum()
    loss.backward()
    assert torch.get_rng_state().equal(expected)


def test_state_continues_the_roundings():
    model, x = mlp(), torch.randn(64, 64)

    def step(compressor):
        model.zero_grad()
        with compressor:
            loss = model(x).square().mean()
        loss.backward()
        return model[0].weight.grad.clone()

    one = ActivationCompressor(model, "L1.2", seed=9)
    first, second = step(one), step(one)
    other = ActivationCompressor(model, "L1.2", seed=9)
    assert step(other).equal(first)
    third = ActivationCompressor(model, "L1.2", seed=9)
    third.load_state_dict(other.state_dict())
    assert step(third).equal(second)
    assert not first.equal(second)


def test_excluded_tensors_are_kept():
    model, x = mlp(), torch.randn(64, 64)
    with ActivationCompressor(model, "L1", exclude=["1:*", "3:*"]) as compressor:
        model(x)
    bits = {(row.module, row.operation): row.bits for row in compressor.stats.rows}
    assert bits["1", "gelu"] == bits["3", "linear"] == 32
    assert bits["4", "gelu"] == bits["7", "gelu"] == 4


def test_a_pattern_that_matches_nothing_is_refused():
    model, x = mlp(), torch.randn(64, 64)
    compressor = ActivationCompressor(model, "L1", exclude=["1:glu"])
    with pytest.raises(ConfigurationError, match="did you mean '1:gelu'"), compressor:
        model(x)


def test_exclusion_is_for_whoever_uses_a_tensor():
    """Tanh saves its result before the layer that is to be exact saves it as its input."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    x = torch.randn(64, 64)

    def gradient(**settings):
        model.zero_grad()
        with ActivationCompressor(model, "L1", **settings):
            loss = model(x).sum()
        loss.backward()
        return model[2].weight.grad

    exact = torch.tanh(model[0](x)).sum(0)
    assert gradient(exclude=["2:linear"])[0].allclose(exact)
    assert not gradient()[0].allclose(exact)


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: h.amax(1),
        lambda h: h.norm(p=float("inf"), dim=1),
        lambda h: h.max(),
        lambda h: torch.maximum(h, h.flip(0)),
        lambda h: h.abs(),
        lambda h: h.clamp(min=0.1),
        lambda h: h.clone().clamp_(min=0.1),
        lambda h: nn.functional.threshold(h, 0.1, 0.0),
        lambda h: nn.functional.l1_loss(h, torch.zeros_like(h)),
        lambda h: h.masked_fill(h.detach() > 0.5, torch.finfo(h.dtype).min).logsumexp(1),
    ],
)
def test_what_a_backward_compares_or_exponentiates_is_exact(operation):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64), torch.randn(64, 64)
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 0.0, 0.2  # class 0 is never masked

    def gradient(context):
        layer.zero_grad()
        with context:
            loss = operation(layer(x)).sum()
        loss.backward()
        return layer.weight.grad

    assert gradient(ActivationCompressor(layer, "L1")).equal(gradient(nullcontext()))


@pytest.mark.parametrize(
    "operation",
    [
        lambda h: nn.functional.cross_entropy(h.masked_fill(h.detach() > 0.5, -torch.inf), BEST),
        lambda h: nn.functional.log_softmax(h.masked_fill(h.detach() > 0.5, -1e30), 1)[:, 0],
    ],
)
@pytest.mark.parametrize(("derive", "limit"), [(True, 2.0**-9), (False, 0.0)])
def test_log_probabilities_take_sixteen_bits_or_stay_exact(operation, derive, limit):
    """-∞ and -1e30 of masked classes among them; 16 bits leave |log p| ≤ 16 an error of 2⁻⁸ at most."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 64), torch.randn(64, 64)
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = 0.0, 0.2  # class 0 is never masked
    found = []
    for context in (nullcontext(), ActivationCompressor(layer, "L1", derive=derive)):
        layer.zero_grad()
        with context:
            loss = operation(layer(x)).sum()
        loss.backward()
        found.append(layer.weight.grad)
    assert relative_error(found[1:], found[:1]) <= limit


def test_another_pass_in_between_changes_no_name():
    """A second thread enters while the first is in the middle of its forward pass."""
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()), torch.randn(64, 64)
    compressor = ActivationCompressor(model, "L1")

    def rows(interrupt):
        with compressor:
            half = model[1](model[0](x))
            stats = compressor.stats
            if interrupt:
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            model[3](model[2](half)).sum().backward()
        return [(row.module, row.operation, row.bits) for row in stats.rows]

    def other():
        with compressor:
            model(x)

    assert rows(True) == rows(False)


def test_what_two_passes_share_has_a_name_in_both():
    layer = nn.Linear(64, 64)
    compressor = ActivationCompressor(layer, "L1")
    shared, counts = layer(torch.randn(64, 64)), []
    for _ in range(2):
        with compressor:
            loss = (shared * shared).sum() + layer(shared).tanh().sum()
        counts.append([(row.module, row.operation) for row in compressor.stats.rows])
        loss.backward(retain_graph=True)
        del loss
    with compressor:
        first = (shared * shared).sum()
    with_first = len(compressor.stats.rows)
    with compressor:
        (shared * shared).sum()
    assert len(compressor.stats.rows) == with_first == 1
    assert first.requires_grad
    assert counts[0] == counts[1]


def test_what_cannot_work_is_refused_in_one_line():
    model = mlp()
    for call, message in (
        (lambda: ActivationCompressor(model, "L9"), "L9"),
        (lambda: ActivationCompressor(model, bits=0.5), "bits"),
        (lambda: ActivationCompressor(model, "swap"), "CUDA"),
        (lambda: ActivationCompressor(model, "L1").adapt(lambda: model(torch.ones(1, 64)).sum()), "fixed"),
        (lambda: ActivationCompressor(torch.compile(model)), "torch.compile"),
    ):
        if message == "CUDA" and torch.cuda.is_available():
            continue
        with pytest.raises(ConfigurationError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    compressor = ActivationCompressor(model)
    with pytest.raises(ConfigurationError, match="already"), compressor, compressor:
        pass


@pytest.mark.parametrize("level", ["lossless", "L1.1"])
@pytest.mark.parametrize("read", ["values", "unbind", "padded", "normalised"])
def test_jagged_nested_tensors_and_dense_tensors_that_view_them(level, read):
    """Exact where nothing is rounded; 8 bits within 5 % of the gradient's norm."""
    torch.manual_seed(0)
    linear, rows, weight = nn.Linear(64, 64), [torch.randn(n, 64) for n in (25, 39)], torch.randn(64, 64)

    def loss_fn():
        h = linear(torch.nested.nested_tensor(rows, layout=torch.jagged))
        if read == "values":
            return nn.functional.gelu(h.values()).square().sum()
        if read == "unbind":
            return sum(part.sin().square().sum() for part in nn.functional.silu(h).unbind())
        if read == "padded":
            return nn.functional.gelu(torch.nested.to_padded_tensor(h, 0.0)).square().sum()
        return (nn.functional.layer_norm(h, (64,)).values() * weight).sum()

    plain = torch.autograd.grad(loss_fn(), linear.weight)[0]
    with ActivationCompressor(linear, level):
        loss = loss_fn()
    found = torch.autograd.grad(loss, linear.weight)[0]
    error = float((found - plain).norm() / plain.norm())
    assert error == 0 if level == "lossless" else error < 0.05
