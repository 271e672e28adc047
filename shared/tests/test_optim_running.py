"""The base of the element-wise optimizers, with rules of this file's own."""

import copy
import os
import subprocess
import sys
import textwrap
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from finetune_common.errors import ConfigurationError
from finetune_common.optim import ElementwiseOptimizer, Rule, flat_row, run, whole_norms
from finetune_common.optim.ops import (
    Divisor,
    TensorList,
    add_scaled,
    clamp,
    divide,
    maximum,
    sign,
    square_root,
)
from finetune_common.optim.rounding import round_stochastically
from finetune_common.optim.run import _fused_at_once


def test_compiled_code_multiplies_by_the_reciprocal_of_a_divisor():
    value, by = torch.tensor([1.0, 3.0, -7.0]), Divisor(0.3)
    assert torch.equal(divide(value.clone(), by), value / 0.3)
    assert torch.equal(divide(TensorList([value.clone()]), by).tensors[0], value / 0.3)
    reciprocal = torch.tensor(1 / 0.3)  # what compiled code is given
    assert torch.equal(divide(value.clone(), reciprocal), value * reciprocal)


def scaled_sign_momentum(param, grad, buffer, *, lr, decay, scale, total):
    """b = decay b + scale g;  θ = θ - lr · max(√|b|, 0.1) · sign(b) · clamp(total, 0, 2)."""
    buffer = buffer * decay + grad * scale
    size = maximum(square_root(buffer * sign(buffer)), buffer * 0.0 + 0.1)
    return add_scaled(param, size * sign(buffer) * clamp(grad * 0.0 + total, 0.0, 2.0), lr), buffer


class ScaledSignMomentum(ElementwiseOptimizer):
    """Each tensor's gradient is divided by its norm; `total` counts all norms so far, for all tensors."""

    def __init__(self, params, lr=0.1, **running):
        super().__init__(params, {"lr": lr, "start": 0.5}, **running)

    def rule(self, group):
        return scaled_sign_momentum, {}

    def initial_state(self, group):
        return {"buffer": group["start"]}

    def scalars(self, group, step):
        return {"lr": -float(group["lr"]), "decay": 0.9}

    def prepare(self, batches):
        norms = [whole_norms(batch.grads) for batch in batches]
        states = [self.state[param] for batch in batches for param in batch.params]
        past = next((state["total"] for state in states if "total" in state), torch.zeros(()))
        total = past + sum(norm.sum() for norm in norms).float()
        for state in states:
            state["total"] = total.clone()
        return [{"scale": 1 / (norm.float() + 1), "total": total.expand(len(norm))} for norm in norms]


def parameters(dtype=torch.float32):
    torch.manual_seed(0)
    shapes = [(4, 3), (), (5,), (140_001,), (1,), (2, 3, 4)]
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]


def train(optimizer, params, steps):
    for step in steps:
        torch.manual_seed(100 + step)
        for param in params:
            param.grad = torch.randn(param.shape).to(param.dtype)
        optimizer.step()


def by_hand(steps):
    params = [param.detach().double() for param in parameters()]
    buffers, total = [torch.full_like(param, 0.5) for param in params], 0.0
    for step in steps:
        torch.manual_seed(100 + step)
        grads = [torch.randn(param.shape).double() for param in params]
        total += sum(float(grad.norm()) for grad in grads)
        for i, grad in enumerate(grads):
            buffers[i] = 0.9 * buffers[i] + grad / (1 + grad.norm())
            size = buffers[i].abs().sqrt().clamp(min=0.1)
            params[i] = params[i] - 0.1 * size * buffers[i].sign() * min(total, 2.0)
    return params


def assert_close(actual, expected, tolerance=1e-5):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.detach().double(), b.detach().double(), rtol=tolerance, atol=tolerance)


RUNNING = [{"fused": False}, {"foreach": True}, {"fused": True}]


@pytest.mark.parametrize("running", RUNNING, ids=["reference", "foreach", "fused"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_three_ways_agree_with_the_equation_norms_and_shared_state_included(running):
    params = parameters()
    train(ScaledSignMomentum(params, **running), params, range(8))
    assert_close(params, by_hand(range(8)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_compiled_call_for_all_tensors_does_what_a_gpu_step_does():
    params, expected = parameters(), parameters()
    rows, expected_rows = (
        [[param.detach().view(-1), torch.ones(param.numel()), torch.zeros(param.numel())] for param in own]
        for own in (params, expected)
    )
    rule, scalars = Rule(scaled_sign_momentum), {"lr": -0.1, "decay": 0.9, "total": 1.5}
    for _ in range(3):
        scales = torch.linspace(0.1, 0.9, len(rows))
        _fused_at_once(rule, rows, scalars, {"scale": scales})
        run("reference", rule, expected_rows, scalars, {"scale": scales})
    assert_close(params, expected, 1e-6)


def test_lists_of_other_lengths_are_compiled_however_many_there_are(monkeypatch):
    """Heads that take turns, layers with norms of their own: torch allows eight kinds of input a function."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    rule, scalars = Rule(scaled_sign_momentum), {"lr": -0.1, "decay": 0.875, "total": 1.5}
    for length in range(2, 14):
        row, expected = ([[torch.ones(length), torch.ones(length), torch.zeros(length)]] for _ in range(2))
        _fused_at_once(rule, row, scalars, {"scale": torch.ones(1)})
        run("reference", rule, expected, scalars, {"scale": torch.ones(1)})
        assert_close(row[0], expected[0], 1e-6)


@pytest.mark.parametrize("running", RUNNING[:2], ids=["reference", "foreach"])
def test_shared_state_survives_a_file_a_copy_and_does_not_alias(running, tmp_path):
    params = parameters()
    optimizer = ScaledSignMomentum(params, **running)
    train(optimizer, params, range(4))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = [nn.Parameter(param.detach().clone()) for param in params]
    again = ScaledSignMomentum(resumed, **running)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state)
    copied_params, copied = copy.deepcopy((params, optimizer))
    assert (copied.foreach, copied.fused) == (optimizer.foreach, optimizer.fused)
    for given, its in ((optimizer, params), (again, resumed), (copied, copied_params)):
        train(given, its, range(4, 8))
    for a, b, c in zip(params, resumed, copied_params, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    totals = [own.state[its[0]]["total"] for own, its in ((again, resumed), (optimizer, params))]
    assert torch.equal(*totals)
    assert not torch.equal(state["state"][0]["total"], totals[0])


def test_state_of_another_model_is_refused():
    small, large = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    optimizer = ScaledSignMomentum([small])
    train(optimizer, [small], range(1))
    with pytest.raises(ConfigurationError, match=r"shape \(2,\), the parameter \(3,\)"):
        ScaledSignMomentum([large]).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("layout", ["transposed", "channels_last"])
@pytest.mark.parametrize("running", RUNNING[:2], ids=["reference", "foreach"])
def test_memory_layout_makes_no_difference(layout, running):
    torch.manual_seed(0)
    values, grads = torch.randn(2, 3, 4, 5), torch.randn(3, 2, 3, 4, 5)
    plain = nn.Parameter(values.clone())
    other = nn.Parameter(
        values.to(memory_format=torch.channels_last)
        if layout == "channels_last"
        else values.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    )
    optimizers = [ScaledSignMomentum([param], **running) for param in (plain, other)]
    for step, grad in enumerate(grads):
        plain.grad = grad.clone()
        other.grad = grad.clone(memory_format=torch.preserve_format)
        if step == 2:
            other.data = other.data.contiguous()
        for optimizer in optimizers:
            optimizer.step()
    assert_close([plain], [other], 1e-6)


@pytest.mark.parametrize("running", RUNNING[:2], ids=["reference", "foreach"])
@pytest.mark.parametrize(
    "slices", [(slice(None), slice(3)), (slice(None, None, 2), slice(None)), (slice(1), slice(1, 2))]
)
def test_a_parameter_with_gaps_takes_the_steps_of_a_dense_one_and_nothing_beside_it_moves(slices, running):
    torch.manual_seed(0)
    whole, grads = torch.randn(8, 6), torch.randn(3, 8, 6)
    other, beside = whole.clone(), torch.ones(8, 6, dtype=torch.bool)
    beside[slices] = False
    gapped, dense = nn.Parameter(other[slices]), nn.Parameter(whole[slices].clone())
    for param in (gapped, dense):
        optimizer = ScaledSignMomentum([param], **running)
        for grad in grads:
            param.grad = grad[slices].clone() if param is dense else grad[slices]
            optimizer.step()
    assert_close([gapped], [dense], 1e-6)
    assert torch.equal(other[beside], whole[beside])


def test_flat_rows_are_views_of_the_parameter_and_its_state():
    param, state = nn.Parameter(torch.zeros(2, 3)), torch.zeros(2, 3)
    row = flat_row(param, torch.ones(2, 3), state)
    row[0].fill_(1.0)
    row[2].fill_(2.0)
    assert param.sum().item() == 6
    assert state.sum().item() == 12


class LiveBytes(TorchDispatchMode):
    """The bytes of new tensors alive at a time, at most."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {
            x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        }
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage.data_ptr() not in given:
                self.live[id(tensor)] = storage.nbytes()
                weakref.finalize(tensor, self.live.pop, id(tensor), None)
                self.peak = max(self.peak, sum(self.live.values()))
        return result


@pytest.mark.parametrize("running", RUNNING[:2], ids=["reference", "foreach"])
def test_eager_temporaries_stay_below_one_parameter(running):
    param = nn.Parameter(torch.ones(2**22))
    param.grad = torch.ones_like(param)
    optimizer = ScaledSignMomentum([param], **running)
    optimizer.step()
    with LiveBytes() as bytes_:
        optimizer.step()
    assert 0 < bytes_.peak < param.numel() * 4


class TestStochasticRounding:
    """E[rounded] = value, over 100,000 draws: the mean lies within 5 standard errors."""

    @pytest.mark.parametrize("value", [1.0 + 2**-10, -3.14159, 1e-5, 6.1e-5, 2.0**-130])
    def test_it_is_unbiased_and_takes_the_two_neighbours(self, value):
        n = 100_000
        x = torch.full((n,), value)
        rounded = round_stochastically(x, salt=3).double()
        truncated = (x[:1].view(torch.int32) & -65536).view(torch.float32).double()
        beyond = ((x[:1].view(torch.int32) & -65536) + 65536).view(torch.float32).double()
        assert set(rounded.tolist()) <= {truncated.item(), beyond.item()}
        exact = float(x[0].double())
        gap = abs((beyond - truncated).item())
        share = abs(exact - truncated.item()) / gap
        error = 5 * gap * (share * (1 - share) / n) ** 0.5
        assert abs(rounded.mean().item() - exact) <= error

    def test_what_bfloat16_can_say_is_left_as_it_is(self):
        x = torch.tensor([0.0, -0.0, 1.0, -1.5, float("inf"), float("-inf"), 2.0**-126])
        assert torch.equal(round_stochastically(x, salt=9).float(), x)
        assert round_stochastically(torch.tensor([float("nan")]), salt=1).isnan().all()

    def test_neighbouring_salts_and_positions_are_uncorrelated(self):
        x = torch.full((100_000,), 1.0 + 2**-8)  # half-way: up or down with equal odds
        up = [(round_stochastically(x, salt=salt) > 1.0).double() * 2 - 1 for salt in (0, 1, 2)]
        bound = 5 / 100_000**0.5
        assert abs((up[0] * up[1]).mean()) < bound
        assert abs((up[1] * up[2]).mean()) < bound
        assert abs((up[0][1:] * up[0][:-1]).mean()) < bound

    def test_small_steps_survive_on_average_and_are_lost_without(self):
        def trained(stochastic):
            param = nn.Parameter(torch.ones(20_000, dtype=torch.bfloat16))
            optimizer = Descent([param], {"lr": 1e-4}, stochastic_rounding=stochastic, fused=False)
            for _ in range(20):
                param.grad = torch.ones_like(param)
                optimizer.step()
            return param.detach().double().mean().item()

        assert trained(stochastic=False) == 1.0
        assert trained(stochastic=True) == pytest.approx(1 - 20 * 1e-4, abs=2e-4)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_all_ways_round_alike(self):
        results = []
        for running in RUNNING:
            params = parameters(torch.bfloat16)
            train(Descent(params, {"lr": 1e-3}, stochastic_rounding=True, **running), params, range(3))
            results.append(params)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert torch.equal(a, b)


def descent(param, grad, *, lr):
    return (param - grad * lr,)


class Descent(ElementwiseOptimizer):
    def rule(self, group):
        return descent, {}

    def scalars(self, group, step):
        return {"lr": float(group["lr"])}


def test_fused_is_the_default_only_for_large_models():
    small = Descent([nn.Parameter(torch.ones(10))], {"lr": 0.1})
    large = Descent([nn.Parameter(torch.empty(2**23, device="meta"))], {"lr": 0.1})
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [small._path(cpu), small._path(cuda)] == ["reference", "foreach"]
    assert [large._path(cpu), large._path(cuda)] == ["fused", "fused"]
    large.fused = False
    assert [large._path(cpu), large._path(cuda)] == ["reference", "foreach"]


def test_without_a_compiler_it_warns_once_and_runs_as_written(tmp_path):
    program = """
        import warnings, torch
        from finetune_common.optim import ElementwiseOptimizer

        def descent(param, grad, *, lr):
            return (param - grad * lr,)

        class Descent(ElementwiseOptimizer):
            def rule(self, group):
                return descent, {}
            def scalars(self, group, step):
                return {"lr": float(group["lr"])}

        param = torch.nn.Parameter(torch.ones(20_000))
        optimizer = Descent([param], {"lr": 0.25}, fused=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                param.grad = torch.ones_like(param)
                optimizer.step()
        assert torch.equal(param, torch.full((20_000,), 0.5))
        print([str(w.message) for w in caught if w.category is RuntimeWarning])
    """
    environment = {
        **os.environ,
        "CXX": "/nonexistent/c++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("no working compiler was found") == 1
    assert "install a C++ compiler" in done.stdout
