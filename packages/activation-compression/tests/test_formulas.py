"""The table against torch's own formulas, and its meaning: what it does not know is not rounded."""

from pathlib import Path

import pytest
import torch
import torchgen
from torch import nn
from torchgen.packaged.autograd.load_derivatives import load_derivatives

from activation_compression import ActivationCompressor
from activation_compression.formulas import FORMULAS, Formulas
from finetune_common.errors import ConfigurationError

HELD = ("linear", "smooth", "exact", "logarithm", "gate", "index", "shape", "coupled")


@pytest.fixture(scope="module")
def saved() -> dict[str, dict[str, str]]:
    """Node → the tensors that it saves → the gradient formulas of the node, from torch's derivatives.yaml."""
    rooms = Path(torchgen.__file__).parent / "packaged"
    native = rooms / "ATen" / "native"
    infos, _ = load_derivatives(
        str(rooms / "autograd" / "derivatives.yaml"),
        str(native / "native_functions.yaml"),
        str(native / "tags.yaml"),
    )
    found: dict[str, dict[str, str]] = {}
    for variants in infos.values():
        for info in variants.values():
            values = [*info.all_saved_inputs, *info.all_saved_outputs]
            formulas = " ".join(derivative.formula for derivative in info.derivatives)
            for value in values:
                if "Tensor'" in str(value.nctype.type) and info.op:
                    found.setdefault(info.op, {})[str(value.nctype.name)] = formulas
    return found


def test_every_entry_names_a_value_that_torch_saves(saved):
    """A misspelt entry would never be met, and its value would stay exact without a word."""
    known = {(node, value) for node, values in saved.items() for value in values}
    assert set(FORMULAS) - known == set()


def test_what_torch_saves_and_the_table_does_not_know_is_exact(saved):
    formulas = Formulas()
    unknown = [
        (node, value) for node, values in saved.items() for value in values if (node, value) not in FORMULAS
    ]
    assert len(unknown) > 300  # most of torch; networks use few of them
    assert all(formulas.find(node, value, None).kind == "exact" for node, value in unknown)


def test_no_value_that_a_formula_divides_by_may_be_rounded(saved):
    """Read off the formulas themselves: `/ x`, x.reciprocal(), x.log(), x.sqrt(), comparisons with x."""
    signs = ("/ {}", "/{}", "{}.reciprocal()", "{}.log()", "{}.sqrt()", "{} ==", "== {}", "{}.sgn()")
    wrong = [
        (node, value)
        for node, values in saved.items()
        for value, formula in values.items()
        if (entry := FORMULAS.get((node, value))) is not None
        and not callable(entry)
        and entry.kind in ("linear", "smooth")
        and any(sign.format(value) + end in formula + " " for sign in signs for end in (" ", ")", "."))
    ]
    assert wrong == []


def test_values_of_which_only_the_shape_is_read_are_not_read():
    """Rounded to nothing, the gradient is the plain one bit for bit."""
    operations = [
        lambda h: nn.functional.max_pool2d(h, 2),
        lambda h: nn.functional.adaptive_max_pool2d(h, 3),
        lambda h: nn.functional.avg_pool2d(h, 3, stride=2, padding=1),
        lambda h: nn.functional.adaptive_avg_pool2d(h, 5),
        lambda h: nn.functional.pad(h, (1, 2, 2, 1), mode="reflect"),
        lambda h: nn.functional.pad(h, (1, 2, 2, 1), mode="replicate"),
        lambda h: h.gather(2, torch.arange(12 * 12).view(1, 1, 12, 12).expand(8, 4, -1, -1) % 12),
        lambda h: nn.functional.nll_loss(h.contiguous(), torch.zeros(8, 12, 12, dtype=torch.long)),
    ]
    x = torch.randn(8, 4, 12, 12)
    weights = torch.randn(8 * 4 * 16 * 16)
    for memory in (torch.contiguous_format, torch.channels_last):
        for operation in operations:
            found = []
            for level in ("L0", "L1"):
                h = x.clone(memory_format=memory).requires_grad_()
                with ActivationCompressor(nn.Identity(), level) as compressor:
                    out = operation(h * 1.5)
                    loss = (out * weights[: out.numel()].view(out.shape)).sum()
                loss.backward()
                found.append((h.grad, compressor.stats.rows))
            assert found[0][0].equal(found[1][0])
            assert any(row.bits == 0 for row in found[1][1])


@pytest.mark.parametrize("dim", [-1, 2])
def test_an_index_is_as_narrow_as_its_axis_is_long(dim):
    """A hundred classes fit into a byte, whichever end the axis is counted from."""
    torch.manual_seed(0)
    model, x = nn.Linear(64, 100), torch.randn(16, 128, 64)
    labels, found = torch.randint(0, 100, (16, 128, 1)), []
    for level in ("L0", "lossless"):
        with ActivationCompressor(model, level) as compressor:
            loss = -model(x).log_softmax(-1).gather(dim, labels).mean()
        found.append(torch.autograd.grad(loss, model.weight)[0])
    assert found[1].equal(found[0])
    [row] = [row for row in compressor.stats.rows if row.dtype == "int64"]
    assert row.stored_bytes == labels.numel()


class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(context, q, k):
        context.save_for_backward(q, k)
        return q * k

    @staticmethod
    def backward(context, grad):
        q, k = context.saved_tensors
        return grad * k, grad * q


def test_an_autograd_function_of_a_caller_is_exact_unless_it_is_declared():
    model, x = nn.Linear(64, 64), torch.randn(64, 64)
    kinds = []
    for formulas in (None, {"Rotate": ["linear", "exact"]}):
        compressor = ActivationCompressor(model, "L1", formulas=formulas)
        with compressor:
            loss = Rotate.apply(model(x), model(x)).view(-1).sum()
        loss.backward()
        kinds.append([row.bits for row in compressor.stats.rows if row.operation == "Addmm"])
    assert kinds == [[32, 32], [4, 32]]
    with pytest.raises(ConfigurationError, match=r"formulas\['Rotate'\]='liner'.*linear"):
        ActivationCompressor(model, formulas={"Rotate": ["liner"]})


SINGULAR = {
    "log of a softmax": lambda h: -(h.softmax(-1) + 1e-9).log().diagonal().mean(),
    "entropy": lambda h: -(h.softmax(-1) * h.softmax(-1).log()).sum(-1).mean(),
    "entropy, one softmax": lambda h: (lambda p: -(p * p.log()).sum(-1).mean())(h.softmax(-1)),
    "reciprocal of a square": lambda h: (1 / (h.square() + 1e-2)).mean(),
    "reciprocal of a product": lambda h: (h * h + 1e-2).reciprocal().mean(),
    "cross-entropy of a sigmoid": lambda h: nn.functional.binary_cross_entropy(
        h.sigmoid(), (h.detach() > 0).float()
    ),
    "log of a sigmoid": lambda h: -(h.sigmoid().clamp(min=1e-7)).log().mean(),
    "softplus by hand": lambda h: (1 + h.exp()).log().mean(),
    "normal density": lambda h: (
        -torch.distributions.Normal(h, nn.functional.softplus(h.flip(0)) + 1e-3)
        .log_prob(torch.ones(64))
        .mean()
    ),
    "root": lambda h: h.abs().pow(0.5).mean(),
    "logit": lambda h: torch.logit(h.sigmoid(), eps=1e-6).square().mean(),
    "standard deviation": lambda h: (h.std(0) + 1e-6).log().mean(),
    "amax over groups": lambda h: (
        torch.zeros(8, 64)
        .scatter_reduce(
            0, torch.arange(256).remainder(8)[:, None].expand(-1, 64), h, "amax", include_self=False
        )
        .square()
        .mean()
    ),
    "index_reduce": lambda h: (
        torch.zeros(8, 64)
        .index_reduce(0, torch.arange(256).remainder(8), h, "amin", include_self=False)
        .square()
        .mean()
    ),
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("loss", SINGULAR.values(), ids=SINGULAR)
def test_singular_formulas_do_not_explode(loss):
    """At 4 bits the error stays below 0.3 of the gradient's norm."""
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), torch.randn(256, 64) * 3

    def gradient(level):
        with ActivationCompressor(model, level):
            value = loss(model(x))
        return torch.autograd.grad(value, model.weight)[0]

    exact, found = gradient("L0"), gradient("L1")
    assert float((found - exact).norm() / exact.norm()) < 0.3
