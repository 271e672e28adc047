"""What follows a rounded value may be singular near it: then the value is exact."""

import pytest
import torch
import torch.nn.functional as F
from graphs import compiled, relative
from torch import nn

from activation_compression import ActivationCompressor, compile_options

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LABELS = torch.randint(0, 64, (256,), generator=torch.Generator().manual_seed(1))
ROWS = torch.arange(256)
ONE_HOT = F.one_hot(LABELS, 64).float()
MASK = ONE_HOT.bool()
CLASSES = F.one_hot(torch.arange(64) % 8).float()


def in_place(p):
    out = torch.ones(256, 70)
    out[:, :64] = p
    return out[ROWS, LABELS].log()


OF_PROBABILITIES = {
    "gather": lambda p: p.gather(1, LABELS[:, None]).log(),
    "index": lambda p: p[ROWS, LABELS].log(),
    "one column": lambda p: p[:, 1].log(),
    "scaled": lambda p: (0.9 * p).log(),
    "divided": lambda p: (p / 1.1).log(),
    "cast": lambda p: p.double().log(),
    "cat": lambda p: torch.cat([p, 1 - p]).log(),
    "mean of a stack": lambda p: torch.stack([p, p]).mean(0).log(),
    "clamp": lambda p: p.clamp_min(0).log(),
    "where": lambda p: torch.where(MASK, p, 1.0).log(),
    "masked": lambda p: p.masked_fill(~MASK, 1).log(),
    "root": lambda p: p.select(1, 0).sqrt(),
    "reciprocal": lambda p: 1 / p[:, 0],
    "negative power": lambda p: p[:, 0] ** -0.5,
    "rsqrt": lambda p: p[:, :4].mean(1).rsqrt(),
    "masked sum": lambda p: (p * ONE_HOT).sum(1).log(),
    "sum of classes": lambda p: (p @ CLASSES).log(),
    "einsum with one class": lambda p: torch.einsum("bc,bc->b", p, ONE_HOT).log(),
    "product": lambda p: p[:, :3].prod(1).log(),
    "running product": lambda p: p[:, :3].cumprod(1).log(),
    "focal": lambda p: (1 - p[ROWS, LABELS]) ** 2 * p[ROWS, LABELS].log(),
    "smallest": lambda p: p.min(1)[0].log(),
    "top": lambda p: p.topk(60)[0].log(),
    "unbind": lambda p: p.unbind(1)[1].log(),
    "running sum": lambda p: p.cumsum(1)[:, :5].log(),
    "relu": lambda p: p.relu().log(),
    "nll of a logarithm": lambda p: F.nll_loss(p.log(), LABELS),
    "change in place": in_place,
    "mixture": lambda p: torch.lerp(p, p.flip(0), 0.1).log(),
}
OF_LOGITS = {
    "angle": lambda h: torch.atan2(h * h.sin(), h * h.cos()),
    "root of squared differences": lambda h: (F.mse_loss(h.tanh(), h.sin(), reduction="none") + 1e-6).sqrt(),
    "sum of a product": lambda h: torch.addcmul(torch.tensor(1e-6), h, h).log(),
    "norm": lambda h: (1e-3 * h * h.sin()).norm(dim=1),
    "deviation": lambda h: (h * h.sigmoid()).std(1).log(),
    "distance": lambda h: torch.cdist(h.sigmoid(), CLASSES.t()).log(),
    "outer function": lambda h: torch.expm1((h * h.sin()).square()).add(1e-6).log().clamp(max=5),
    "logsumexp": lambda h: torch.logsumexp(h, 1) - h[ROWS, LABELS],
    "cross-entropy": lambda h: F.cross_entropy(h, LABELS),
}
LOSSES = OF_LOGITS | {
    name: lambda h, function=function: function(h.softmax(1)) for name, function in OF_PROBABILITIES.items()
}
COMPILED = [
    *("gather", "mean of a stack", "clamp", "masked sum", "sum of classes", "einsum with one class"),
    *("focal", "smallest", "unbind", "relu", "mixture", "cross-entropy"),
]


def gradient(loss, level, way):
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), torch.randn(256, 64) * 3
    if way == "compiled":
        options = compile_options(level) if level != "L0" else None
        value = compiled(lambda x: loss(model(x)).mean(), options)(x)
    else:
        with ActivationCompressor(model, level):
            value = loss(model(x)).mean()
    return torch.autograd.grad(value, model.weight)[0]


@pytest.mark.parametrize(
    ("name", "way"), [*((name, "eager") for name in LOSSES), *((name, "compiled") for name in COMPILED)]
)
def test_a_singular_point_adds_no_error(name, way):
    """The control reads probabilities only: its error is that of rounding."""
    control = lambda h: h.softmax(1).gather(1, LABELS[:, None])  # noqa: E731
    noise = relative(gradient(control, "L1", "eager"), gradient(control, "L0", "eager"))
    assert 0 < noise < 0.3
    assert relative(gradient(LOSSES[name], "L1", way), gradient(LOSSES[name], "L0", "eager")) <= noise


def test_values_behind_which_a_product_is_summed_are_rounded():
    """Views, scales, sums and functions without jumps in between change nothing."""
    model = nn.Linear(64, 64)
    with ActivationCompressor(model, "L1") as compressor:
        h = model(torch.randn(256, 64))
        loss = model(F.gelu(0.5 * (h * h.tanh()).view(64, 4, 64) + 1)).mean()
    loss.backward()
    assert {row.bits for row in compressor.stats.rows if row.operation in ("mul", "tanh")} <= {0, 4}


class Scale(torch.autograd.Function):
    """A gradient reversal: saves nothing, and is no function of torch."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


class Root(torch.autograd.Function):
    """A singular point of a caller's own, which reads its result."""

    @staticmethod
    def forward(ctx, x):
        y = x.sqrt()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        return gradient / (2 * ctx.saved_tensors[0])


OF_FUNCTIONS = {
    "scale": lambda p: Scale.apply(p).log(),
    "scale, twice": lambda p: Scale.apply(Scale.apply(p)).log(),
    "scale of a view": lambda p: (Scale.apply(p.view(64, 256)) + 1e-9).log(),
    "own root": lambda p: Root.apply(p + 1e-9) * 1.0,
    "own root of a scale": lambda p: Root.apply(Scale.apply(p)) * 1.0,
}


@pytest.mark.parametrize("function", OF_FUNCTIONS.values(), ids=OF_FUNCTIONS)
def test_a_callers_own_function_before_a_singular_point_hides_nothing(function):
    loss = lambda h: function(h.softmax(-1))  # noqa: E731
    assert gradient(loss, "L1", "eager").equal(gradient(loss, "L0", "eager"))


@pytest.mark.parametrize("heads", [3, 12])
@pytest.mark.parametrize("function", [lambda h: h.softmax(-1), torch.sigmoid], ids=["softmax", "sigmoid"])
def test_probabilities_of_many_heads_wait_for_their_loss(heads, function):
    """All heads run before the first logarithm, so that every value waits for all the others."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(64, 64) for _ in range(heads))
    x, found = torch.randn(256, 64) * 6, []
    for level in ("L0", "L1"):
        with ActivationCompressor(model, level):
            probabilities = [function(head(x)) for head in model]
            loss = -torch.stack([(p + 1e-9).log().mean() for p in probabilities]).sum()
        slopes = torch.autograd.grad(loss, [head.weight for head in model])
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    assert found[0].equal(found[1])


class Layer(torch.autograd.Function):
    """A layer of which torch knows nothing, as one with weights in 4 bits."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x @ weight

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.weight.T, None


def test_what_a_custom_function_reads_is_compressed_as_before_a_matrix():
    torch.manual_seed(0)
    gate, up, down = torch.randn(64, 128), torch.randn(64, 128), torch.randn(128, 64)
    x = torch.randn(256, 64, requires_grad=True)
    stored = []
    for layer in (Layer.apply, torch.matmul):
        compressor = ActivationCompressor(nn.Identity(), "L1")
        with compressor:
            product = F.silu(x @ gate) * (x @ up)
            loss = layer(product, down).square().mean()
        loss.backward()
        stored.append([row.bits for row in compressor.stats.rows if row.operation == "mul"])
    assert stored[0] == stored[1] == [4, 0]  # the other factor is computed again


class Projection(torch.autograd.Function):
    """Three results of one matrix, which it saves."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return tuple(part.contiguous() for part in (x @ weight).chunk(3, -1))

    @staticmethod
    def backward(ctx, *gradients):
        return torch.cat(gradients, -1) @ ctx.saved_tensors[0].mT, None


@pytest.mark.parametrize("trained", [False, True])
def test_what_a_callers_own_matrix_makes_is_no_singular_point(trained):
    """The matrix does not fit to what the function reads or makes element by element, as 1 / x would."""
    model, weight = nn.Linear(64, 64), torch.randn(64, 192, requires_grad=trained)
    with ActivationCompressor(model, "L1") as compressor:
        q, k, v = Projection.apply(model(torch.randn(8, 128, 64)), weight)
        loss = ((q * k).tanh() * v).mean()
    loss.backward()
    assert {row.bits for row in compressor.stats.rows if row.operation in ("mul", "tanh")} <= {0, 4}
