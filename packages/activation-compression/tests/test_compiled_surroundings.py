"""What surrounds a compiled model: operations that are not torch's, effects, regions, copies of options."""

import copy
import gc
import pickle

import pytest
import torch
from graphs import compiled, relative
from torch import nn

from activation_compression import compile_options
from activation_compression.compiled.operators import STATES

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def gradients(forward, model, x):
    return torch.autograd.grad(forward(x).sum(), list(model.parameters()))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def logarithm_named(name):
    """Another library's operation with a name that torch has too: the logarithm, which divides backward."""

    @torch.library.custom_op(f"surroundings::{name}", mutates_args=())
    def forward(self: torch.Tensor) -> torch.Tensor:
        return self.abs().log()

    @torch.library.custom_op(f"surroundings::{name}_backward", mutates_args=())
    def backward(grad_output: torch.Tensor, self: torch.Tensor) -> torch.Tensor:
        return grad_output / self

    for made in (forward, backward):
        made.register_fake(lambda first, *_: torch.empty_like(first))
    forward.register_autograd(
        lambda ctx, slope: backward(slope, *ctx.saved_tensors),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    return forward


@pytest.mark.parametrize("name", ["gelu", "tanh", "mine"])
def test_an_operation_that_is_not_torchs_gets_what_it_saved(name):
    torch.manual_seed(0)
    model, x, own = nn.Linear(64, 64), drawn(64, 64), logarithm_named(name)
    expected = gradients(compiled(lambda x: own(model(x))), model, x)
    options = compile_options("L1.2")
    found = gradients(compiled(lambda x: own(model(x)), options), model, x)
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))
    assert {row.bits for row in options.stats.rows} == {32}


def test_numbers_whose_bits_are_read_as_others_are_exact():
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)]), drawn(64, 64)

    def forward(x):
        bits = model[0](x).detach().bfloat16().view(torch.float16).float()
        return bits.clamp(-2, 2) * model[1](x)

    last = nn.ModuleList([model[1]])
    expected = gradients(compiled(forward), last, x)
    found = gradients(compiled(forward, compile_options("L1.2")), last, x)
    assert all(torch.equal(p, q) for p, q in zip(found, expected, strict=True))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_parts_of_as_many_rows_as_a_call_has_are_kept_apart():
    """How many rows a mask picks is not known when the graph is made."""
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.Linear(64, 64), nn.Linear(32, 64), nn.Linear(32, 64)]), drawn(256, 64)

    def forward(x):
        picked = model[0](x)[x[:, 0] > 0]
        return model[1](picked[:, :32]).square().sum() + model[2](picked[:, 32:]).square().sum()

    expected = gradients(forward, model, x)
    found = gradients(compiled(forward, compile_options("L1.1", min_elements=0)), model, x)
    assert all(relative(p, q) < 0.02 for p, q in zip(found, expected, strict=True))


class Region(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 64)

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return x + self.second(nn.functional.gelu(self.first(x)))


def test_what_a_nested_region_saves_is_counted_once():
    torch.manual_seed(0)
    model, x = nn.Sequential(Region(), Region(), Region()), drawn(256, 64)
    expected, options = gradients(compiled(model), model, x), compile_options("L1.1")
    found = gradients(compiled(model, options), model, x)
    assert all(relative(p, q) < 0.02 for p, q in zip(found, expected, strict=True))
    assert sum(row.shape == (256, 128) for row in options.stats.rows) == 3


def test_rows_are_those_of_the_newest_pass_and_of_all_that_wait():
    """In whatever order passes end, as in a pipeline of micro-batches."""
    model, x, options = nn.Linear(64, 64), drawn(64, 64), compile_options("L1")
    packed = compiled(lambda x: model(x).tanh(), options)
    packed(x).sum().backward()
    one = options.stats.stored_bytes
    early, first, second = packed(x), packed(x), packed(x)
    first.sum().backward()
    for _ in range(3):
        packed(x).sum().backward()
    assert options.stats.stored_bytes == 3 * one
    (early + second).sum().backward()
    packed(x)
    assert options.stats.stored_bytes == one


class Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, passes):
        ctx.save_for_backward(x, passes)
        return x.sin()

    @staticmethod
    def backward(ctx, slope):
        x, passes = ctx.saved_tensors
        passes.add_(1)
        return slope * x.cos(), None


@pytest.mark.parametrize("level", ["lossless", "L1"])
def test_what_backward_changes_is_changed(level):
    model, x, passes = nn.Linear(64, 64), drawn(64, 64), torch.zeros(3)
    packed = compiled(lambda x: Counted.apply(model(x), passes), compile_options(level))
    for _ in range(3):
        gradients(packed, model, x)
    assert passes.tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("bounded", [torch.tanh, torch.sigmoid])
def test_a_bounded_function_of_wide_scores_is_not_biased(bounded):
    """Its slope at a rounded score would be wrong in the mean; at a rounded result it is right."""
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), drawn(128, 64)

    def scores(x):
        hidden = model(x)
        return bounded(hidden @ hidden.mT)

    def flat(forward):
        return torch.cat([slope.flatten() for slope in gradients(forward, model, x)])

    expected, options = flat(compiled(scores)), compile_options("L1", derive=False)
    packed = compiled(scores, options)
    draws = torch.stack([flat(packed) for _ in range(16)])
    noise = draws.var(0).sum().sqrt()
    assert noise > 0
    assert (draws.mean(0) - expected).norm() < 1.4 * noise / 16**0.5


@pytest.mark.parametrize("smooth", [nn.functional.softplus, nn.functional.logsigmoid, nn.functional.mish])
def test_a_smooth_function_compares_what_it_gets(smooth):
    """Values of a wide range: beyond the threshold of a function when rounded, below it when exact."""
    torch.manual_seed(0)
    model, x = nn.Linear(64, 64), drawn(512, 64)

    def forward(x):
        return smooth(1000 * model(x)).square()

    expected, options = gradients(compiled(forward), model, x), compile_options("L1.2")
    found = gradients(compiled(forward, options), model, x)
    assert all(slope.isfinite().all() for slope in found)
    assert all(relative(p, q) < 1 for p, q in zip(found, expected, strict=True))
    assert not [row for row in options.stats.rows if row.dtype == "bool"]


def test_a_bounded_function_made_by_hand_stores_one_tensor():
    """x · sigmoid(x) needs x anyway."""
    model, x = nn.Linear(64, 64), drawn(64, 64)
    options = compile_options("L1")

    def forward(x):
        hidden = model(x)
        return hidden * hidden.sigmoid()

    gradients(compiled(forward, options), model, x)
    assert [row.operation for row in options.stats.rows if row.bits == 4] == ["addmm"]


def test_copies_of_options_belong_to_the_same_graphs():
    """As accelerate makes them of what a user gives it; a copy that is dropped takes nothing along."""
    model, x = nn.Linear(64, 64), drawn(64, 64)
    options = compile_options("L1")
    gradients(compiled(lambda x: model(x).tanh(), options), model, x)
    for copied in (copy.deepcopy(options), copy.copy(options), pickle.loads(pickle.dumps(options))):
        assert dict(copied) == dict(options)
        assert copied.stats == options.stats
    del copied
    gc.collect()
    again = copy.deepcopy(options)
    found = gradients(compiled(lambda x: model(x).tanh(), again), model, x)
    assert options.state_dict() == again.state_dict()
    assert relative(found[0], gradients(lambda x: model(x).tanh(), model, x)[0]) < 0.3


def test_options_that_another_process_gets_have_statistics_of_their_own():
    options = compile_options("L1", seed=11)
    sent = pickle.dumps(options)
    here = STATES.pop(options["custom_partitioner_fn"].settings.state)  # the other process has none
    there = pickle.loads(sent)
    model, x = nn.Linear(64, 64), drawn(64, 64)
    gradients(compiled(lambda x: model(x).tanh(), there), model, x)
    assert there.stats.rows
    assert not here.rows
