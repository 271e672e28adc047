"""Sampling gradient noise at a fixed point, and the monitor that does so during training."""

import math
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from clipped_adaptive.heavy_tails import TailMonitor, hill, outlier_ratios, sample_gradient_noise
from finetune_common.errors import ConfigurationError


def problem(rows=50, dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, 1))
    return model.double(), torch.randn(rows, 5, dtype=torch.float64)


def loss_fn(model, batch):
    return (model(batch[:, :4])[:, 0] - batch[:, 4]).square().mean()


def flat_gradient(model, batch):
    grads = torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def test_the_norms_are_those_of_the_definition():
    """The full gradient is that of the mean over all 50 rows; the short last batch gives no norm."""
    model, data = problem()
    batches = data.split(8)
    norms = sample_gradient_noise(model, loss_fn, batches, 6)
    model.eval()
    full = flat_gradient(model, data)
    expected = torch.stack([(flat_gradient(model, batch) - full).norm() for batch in batches[:6]])
    torch.testing.assert_close(norms, expected, rtol=1e-10, atol=0)


def test_passes_are_as_promised():
    """n + ⌈rows/batch⌉ passes."""
    model, data = problem()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    loader = DataLoader(TensorDataset(data), batch_size=8, shuffle=True)
    norms = sample_gradient_noise(model, lambda model, batch: loss_fn(model, batch[0]), loader, 40)
    assert len(passes) == 40 + math.ceil(50 / 8)
    assert len(set(norms.tolist())) == 40  # the loader shuffles: no mini-batch twice


def test_memory_does_not_grow_with_the_sample(monkeypatch):
    """No more gradients are alive at once for a hundred batches than for ten."""
    gradients_of = torch.autograd.grad

    def most_alive(n):
        model, rows = nn.Linear(40, 40), torch.randn(n, 40)
        alive, counts = weakref.WeakSet(), []

        def look(*args, **kwargs):
            gradients = gradients_of(*args, **kwargs)
            alive.update(gradients)
            counts.append(len(alive))
            return gradients

        monkeypatch.setattr(torch.autograd, "grad", look)
        sample_gradient_noise(model, lambda model, x: model(x).mean(), rows.split(1), n)
        return max(counts)

    assert most_alive(100) == most_alive(10) < 10


def test_resident_memory_does_not_grow_with_the_sample():
    """In a process of its own: 200 more gradients of 4 MB, were they or their remains kept, are 800 MB."""
    code = """
import resource, torch
from torch import nn
from clipped_adaptive.heavy_tails import sample_gradient_noise
model, rows = nn.Linear(1000, 1000), torch.randn(210, 1000)
for n in (10, 210):
    sample_gradient_noise(model, lambda model, x: model(x).mean(), rows[:n].split(1), n)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many - few < 200


def test_nothing_is_changed_by_measuring():
    model, data = problem(dropout=0.5)
    norm = nn.BatchNorm1d(4).double()
    model = nn.Sequential(norm, *model)
    model[1].eval()
    fired = []
    for param in model.parameters():
        param.grad = torch.ones_like(param)
        param.register_hook(lambda grad: fired.append(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    for dropout in ("off", "fixed"):
        sample_gradient_noise(model, loss_fn, data.split(8), 4, dropout=dropout)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(param.grad, torch.ones_like(param)) for param in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert fired == []


def test_fixed_dropout_is_the_same_for_every_batch():
    """Equal batches then have no noise, which they would with new masks; other seeds, other masks."""
    model, data = problem(dropout=0.5)
    equal = [data[:8]] * 5
    assert sample_gradient_noise(model, loss_fn, equal, 5, dropout="fixed").max() < 1e-12
    different = [
        sample_gradient_noise(model, loss_fn, data.split(8), 4, dropout="fixed", seed=s) for s in (1, 2)
    ]
    assert not torch.allclose(*different)
    again = sample_gradient_noise(model, loss_fn, data.split(8), 4, dropout="fixed", seed=1)
    assert torch.equal(different[0], again)


def test_frozen_tied_and_unused_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.unused = nn.Embedding(5, 3), nn.Linear(2, 2)
            self.frozen = nn.Linear(3, 3).requires_grad_(False)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.embedding.weight

        def forward(self, x):
            return self.out(self.frozen(self.embedding(x))).logsumexp(-1)

    torch.manual_seed(0)
    model, batches = Tied(), list(torch.randint(0, 5, (6, 4)))

    def mean(model, batch):
        return model(batch).mean()

    norms = sample_gradient_noise(model, mean, batches, 6)
    grads = [torch.autograd.grad(mean(model, batch), [model.embedding.weight])[0] for batch in batches]
    full = torch.stack(grads).mean(0)
    torch.testing.assert_close(norms, torch.stack([(grad - full).norm() for grad in grads]))


def test_parameters_that_share_a_gradient():
    """Of a sum of two parameters both have the gradient of the sum: their norm is √2 times its own."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    batches = [torch.full((rows, 3), float(value)) for rows, value in ((4, 1), (4, 2), (4, 6))]
    norms = sample_gradient_noise(Sum(), lambda m, x: ((m.a + m.b) * x).mean(0).sum(), batches, 3)
    expected = [abs(value - 3) * 3**0.5 * 2**0.5 for value in (1, 2, 6)]
    assert norms.tolist() == pytest.approx(expected)


def test_batches_of_any_form():
    model, data = problem()
    plain = sample_gradient_noise(model, loss_fn, data.split(8), 5)
    for pack, unpack in (
        (lambda rows: {"x": rows}, lambda batch: batch["x"]),
        (lambda rows: [rows], lambda batch: batch[0]),
        (lambda rows: ((), {"x": rows}), lambda batch: batch[1]["x"]),
    ):
        batches = [pack(rows) for rows in data.split(8)]
        norms = sample_gradient_noise(
            model, lambda model, batch, unpack=unpack: loss_fn(model, unpack(batch)), batches, 5
        )
        assert torch.equal(norms, plain)


BAD = [
    ({"n": 7}, "lower n"),
    ({"n": 0}, "n=0"),
    ({"dropout": "on"}, "dropout='on'"),
    ({"batches": []}, "empty"),
    ({"batches": iter(())}, "only once"),
    ({"batches": ["text"]}, "no tensor"),
]


@pytest.mark.parametrize(("change", "named"), BAD)
def test_bad_arguments_are_refused(change, named):
    model, data = problem()
    arguments = {"batches": data.split(8), "n": 3, **change}
    with pytest.raises(ConfigurationError, match=named):
        sample_gradient_noise(model, loss_fn, **arguments)


def test_a_model_without_trainable_parameters_is_refused():
    model, data = problem()
    with pytest.raises(ConfigurationError, match="requires_grad"):
        sample_gradient_noise(model.requires_grad_(False), loss_fn, data.split(8), 3)


def test_heavy_tailed_rows_give_heavy_tailed_noise():
    """The gradient of w·x in w is x: its noise has the index of the rows."""
    random = np.random.default_rng(0)
    rows = torch.tensor(random.pareto(1.5, (3000, 1)) + 1)
    model = nn.Linear(1, 1, bias=False).double()
    norms = sample_gradient_noise(model, lambda model, x: model(x).mean(), list(rows.split(1)), 3000)
    assert abs(hill(norms, 150) - 1.5) < 4 * 1.5 / 150**0.5 + 0.1


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(4, 1), nn.Dropout(0.5)

    def forward(self, inputs, labels):
        loss = (self.dropout(self.linear(inputs))[:, 0] - labels).square().mean()
        return type("Output", (), {"loss": loss})


def batch_of(step, rows=6):
    generator = torch.Generator().manual_seed(step)
    return {
        "inputs": torch.randn(rows, 4, generator=generator),
        "labels": torch.randn(rows, generator=generator),
    }


def train(model, monitor, steps):
    optimizer, records = torch.optim.SGD(model.parameters(), lr=0.01), {}
    for step in steps:
        model(**batch_of(step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if monitor is not None and (measured := monitor.on_step(step)):
            records[step] = measured
    return records


def test_the_monitor_measures_the_last_batches_every_n_steps():
    model = Regression()
    monitor = TailMonitor(model, every=5, batches=8)
    records = train(model, monitor, range(1, 16))
    assert list(records) == [10, 15]  # at step 5 there were only five batches
    batches = [batch_of(step) for step in range(8, 16)]
    norms = sample_gradient_noise(model, lambda model, batch: model(**batch).loss, batches, 8)
    mild, extreme = outlier_ratios(norms)
    assert records[15] == pytest.approx(
        {
            "tails.rho_mild": mild,
            "tails.rho_extreme": extreme,
            "tails.hill": hill(norms, 2),
            "tails.noise_median": norms.median().item(),
            "tails.noise_max": norms.max().item(),
        }
    )


def test_the_monitor_changes_nothing_in_training():
    watched, alone = Regression(), Regression()
    torch.manual_seed(1)
    train(watched, TailMonitor(watched, every=4, batches=8), range(1, 20))
    torch.manual_seed(1)
    train(alone, None, range(1, 20))
    assert all(map(torch.equal, watched.parameters(), alone.parameters()))


def test_the_monitor_ignores_evaluation_and_short_batches_and_lets_go():
    model = Regression()
    monitor = TailMonitor(model, every=1, batches=9)
    for step in range(9):
        model(**batch_of(step, rows=3 if step == 4 else 6))
    model.eval()
    model(**batch_of(99))
    whole = [batch_of(step) for step in range(9) if step != 4]
    norms = sample_gradient_noise(model, lambda model, batch: model(**batch).loss, whole, 8)
    assert monitor.on_step(1)["tails.noise_max"] == pytest.approx(norms.max().item())
    monitor.remove()
    model.train()
    model(**batch_of(1))
    assert monitor.on_step(2) == {}


def test_a_resumed_monitor_measures_what_an_uninterrupted_one_would():
    model = Regression()
    monitor = TailMonitor(model, every=10, batches=8)
    train(model, monitor, range(1, 8))
    state = monitor.state_dict()
    monitor.remove()
    resumed = TailMonitor(model, every=10, batches=8)
    resumed.load_state_dict(state)
    expected = [batch_of(step) for step in range(3, 11)]
    [record] = train(model, resumed, range(8, 11)).values()
    norms = sample_gradient_noise(model, lambda model, batch: model(**batch).loss, expected, 8)
    assert record["tails.noise_median"] == pytest.approx(norms.median().item())


def test_remembered_batches_go_to_the_models_device():
    """A checkpoint is read on the CPU."""
    model = Regression()
    monitor = TailMonitor(model, every=10, batches=8)
    train(model, monitor, range(1, 8))
    resumed = TailMonitor(Regression().to("meta"), every=10, batches=8)
    resumed.load_state_dict(monitor.state_dict())
    tensors = [t for batch in resumed.state_dict()["seen"] for t in batch[1].values()]
    assert {t.device.type for t in tensors} == {"meta"}


@pytest.mark.parametrize("bad", [{"every": 0}, {"batches": 7}])
def test_a_monitor_with_a_bad_number_is_refused(bad):
    with pytest.raises(ConfigurationError, match="out of range"):
        TailMonitor(Regression(), **bad)
