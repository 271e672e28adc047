"""Noise composes with any optimizer, resumes bit for bit, is nothing at η = 0, and leaves when removed."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from finetune_common.slots import find
from noise_injection import AdaptiveGradientNoise, AnnealedGradientNoise

VARIANCES = ["microbatch", "running", "ema"]


def model(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Dropout(0.2), nn.Linear(9, 2)).to(dtype)


def train(net, optimizer, steps, first=0, micro=2):
    for step in range(first, first + steps):
        torch.manual_seed(100 + step)
        for _ in range(micro):
            x = torch.randn(5, 6, dtype=net[0].weight.dtype)
            (net(x).square().mean() / micro).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def build(name, net):
    if name in ("sage-adamw", "clipped-adam"):
        package = {"sage-adamw": "sensitivity_lr", "clipped-adam": "clipped_adaptive"}[name]
        pytest.importorskip(package)
        method = find("optimizer", name)
        groups = [{"params": list(net.named_parameters()), "weight_decay": 0.01}]
        own = {"pattern": "weight"} if name == "sage-adamw" else {}
        return method(method.Options(lr=1e-2, **own)).build(net, groups)
    return {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[name](
        [{"params": [p]} for p in net.parameters()], lr=1e-2
    )


OPTIMIZERS = ["adamw", "sgd", "adagrad", "sage-adamw", "clipped-adam"]


def same(one, other):
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("variance", VARIANCES)
def test_no_noise_is_no_change_and_noise_is_one(name, variance):
    results = {}
    for eta in (None, 0.0, 1.0):
        net = model()
        optimizer = build(name, net)
        if eta is not None:
            AdaptiveGradientNoise(optimizer, eta, variance)
        train(net, optimizer, 4)
        results[eta] = weights(net)
    assert same(results[None], results[0.0])
    assert not same(results[None], results[1.0])
    assert all(w.isfinite().all() for w in results[1.0])


def test_the_global_stream_is_untouched():
    net = model()
    optimizer = build("sgd", net)
    AdaptiveGradientNoise(optimizer, 1.0)
    AnnealedGradientNoise(optimizer, 1.0)
    train(net, optimizer, 1)
    with_noise = torch.rand(3)
    net = model()
    train(net, build("sgd", net), 1)
    assert with_noise.equal(torch.rand(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["adamw", "sgd", "sage-adamw"])
@pytest.mark.parametrize("variance", [*VARIANCES, "annealed"])
def test_resume_is_bit_for_bit(variance, name, dtype):
    def attach(optimizer):
        if variance == "annealed":
            return AnnealedGradientNoise(optimizer, 0.1)
        return AdaptiveGradientNoise(optimizer, 1.0, variance)

    net = model(dtype)
    optimizer = build(name, net)
    noise = attach(optimizer)
    train(net, optimizer, 3)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "opt": optimizer.state_dict(), "noise": noise.state_dict()}, file)
    train(net, optimizer, 3, first=3)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = model(dtype)
    resumed.load_state_dict(state["net"])
    optimizer = build(name, resumed)
    noise = attach(optimizer)
    optimizer.load_state_dict(state["opt"])
    noise.load_state_dict(state["noise"])
    train(resumed, optimizer, 3, first=3)
    assert same(weights(net), weights(resumed))


def test_statistics_of_bfloat16_gradients_stay_float32_in_the_state():
    net = model(torch.bfloat16)
    optimizer = build("sgd", net)
    noise = AdaptiveGradientNoise(optimizer, 1.0, "running")
    train(net, optimizer, 2)
    noise.load_state_dict(noise.state_dict())
    assert {t.dtype for own in noise.state_dict()["moments"].values() for t in own.values()} == {
        torch.float32
    }


def test_a_state_of_another_source_is_refused():
    optimizer = build("sgd", model())
    state = AdaptiveGradientNoise(optimizer, variance="running").state_dict()
    with pytest.raises(ConfigurationError, match="variance='running'"):
        AdaptiveGradientNoise(optimizer, variance="ema").load_state_dict(state)


@pytest.mark.parametrize("variance", VARIANCES)
def test_removed_noise_leaves_nothing_behind(variance):
    net = model()
    optimizer = build("adamw", net)
    noise = AdaptiveGradientNoise(optimizer, 1.0, variance)
    noise.remove()
    noise.remove()
    train(net, optimizer, 3, micro=1)
    plain = model()
    train(plain, build("adamw", plain), 3, micro=1)
    assert same(weights(net), weights(plain))
    gone = weakref.ref(noise)
    del noise
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("variance", VARIANCES)
def test_a_dropped_optimizer_takes_its_noise_and_model_with_it(variance):
    net = model()
    optimizer = build("adamw", net)
    gone = weakref.ref(AdaptiveGradientNoise(optimizer, 1.0, variance)), weakref.ref(net[0].weight)
    train(net, optimizer, 2)
    assert all(reference() is not None for reference in gone)
    del net, optimizer
    gc.collect()
    assert all(reference() is None for reference in gone)


def test_a_copied_optimizer_and_model_are_free_of_noise():
    net = model()
    optimizer = build("sgd", net)
    AdaptiveGradientNoise(optimizer, 1.0)
    train(net, optimizer, 1)
    copied_net, copied = copy.deepcopy((net, optimizer))
    plain = copy.deepcopy(net)
    train(copied_net, copied, 2, first=1, micro=1)
    train(plain, build("sgd", plain), 2, first=1, micro=1)
    assert same(weights(copied_net), weights(plain))
    torch.save(net, io.BytesIO())


def test_a_gradient_that_is_not_finite_passes_untouched():
    whole, broken = (nn.Parameter(torch.zeros(4)) for _ in range(2))
    for noise in (AdaptiveGradientNoise, AnnealedGradientNoise):
        optimizer = torch.optim.SGD([whole, broken], lr=0.0)
        attached = noise(optimizer, 1.0)
        for values in ([1.0, 2.0, 3.0, 4.0], [2.0, torch.inf, 3.0, -0.0]):
            (
                (whole * torch.tensor([1.0, 2.0, 3.0, values[0]])) + broken * torch.tensor(values)
            ).sum().backward()
        before, kept = whole.grad.clone(), broken.grad.clone()
        optimizer.step()
        assert broken.grad.equal(kept)
        assert not whole.grad.equal(before)
        optimizer.zero_grad()
        attached.remove()


def test_a_closure_receives_noise_after_each_evaluation():
    net, inputs = model().eval(), torch.randn(4, 6)
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)
    noise = AdaptiveGradientNoise(optimizer, 1e-2)
    losses = []

    def closure():
        optimizer.zero_grad()
        for x in inputs.split(2):
            loss = net(x).square().mean() / 2
            loss.backward()
        losses.append(loss)
        return loss

    optimizer.step(closure)
    assert noise.steps == len(losses) > 1


def test_parameters_without_gradient_added_later_or_unfrozen():
    net = model()
    net[3].requires_grad_(False)
    optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
    AdaptiveGradientNoise(optimizer, 1.0)
    train(net, optimizer, 1)
    net[3].requires_grad_(True)
    optimizer.add_param_group({"params": net[3].parameters()})
    train(net, optimizer, 3)
    plain = model()
    assert not same(weights(net)[2:], weights(plain)[2:])


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    AdaptiveGradientNoise(optimizer, variance="ema")
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigurationError, match="sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -1.0}, "eta=-1.0"),
        ({"eta": float("nan")}, "eta=nan"),
        ({"variance": "micro"}, "variance='micro'"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        AdaptiveGradientNoise(build("sgd", model()), **settings)


def test_something_else_than_an_optimizer():
    with pytest.raises(ConfigurationError, match=r"is not a torch\.optim\.Optimizer"):
        AdaptiveGradientNoise(model())


def test_accelerate_passes_noise_through():
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    results = []
    for prepared_first in (False, True):
        net = model()
        optimizer = build("sgd", net)
        if not prepared_first:
            AdaptiveGradientNoise(optimizer, 1.0)
        net, optimizer = accelerator.prepare(net, optimizer)
        if prepared_first:
            AdaptiveGradientNoise(optimizer, 1.0)
        train(net, optimizer, 2)
        results.append(weights(net))
    assert same(*results)


@pytest.mark.parametrize("variance", VARIANCES)
def test_parameters_without_values_take_steps_so_that_memory_can_be_counted(variance):
    """On torch's meta device: what is kept has the parameter's number of elements, and no value is read."""
    layer = torch.nn.Linear(3, 2, device="meta")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    noise = AdaptiveGradientNoise(optimizer, 0.01, variance)
    for _ in range(2):
        for _ in range(2):
            layer(torch.empty(4, 3, device="meta")).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    kept = noise.state_dict().get("moments", {}).values()
    assert len(kept) == (0 if variance == "microbatch" else 2)  # a window's are not in a checkpoint
    assert all(tensor.is_meta for moments in kept for tensor in moments.values())
    assert (noise.steps, noise.skipped) == (2, 0)
