"""Sensitivity, its distribution over training, and pruning by it, against their definitions."""

import copy

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn

from finetune_common.errors import ConfigurationError
from sensitivity_lr import SensitivityTracker, pruned, sensitivity, sparsity_curve

matplotlib.use("Agg")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


@pytest.fixture
def batches():
    return [(torch.randn(4, 6), torch.randint(2, (4,))) for _ in range(3)]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_sensitivity_is_the_mean_of_parameter_times_gradient(model, batches):
    found = sensitivity(model, batches, loss_fn)
    for name, parameter in model.named_parameters():
        expected = np.zeros(parameter.shape)
        for batch in batches:
            model.zero_grad()
            loss_fn(model, batch).backward()
            expected += np.abs(parameter.detach().numpy() * parameter.grad.numpy()) / len(batches)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5)


def test_sensitivity_predicts_the_loss_without_a_parameter(model, batches):
    """|θ g| is the first-order estimate of |L(θ) - L(θ with θ_j = 0)|: exact in the limit of small θ_j."""
    model = model.double()
    batch = (batches[0][0].double(), batches[0][1])
    with torch.no_grad():
        model[0].weight[0, 0] = 1e-5
    found = sensitivity(model, [batch], loss_fn)["0.weight"][0, 0]
    with torch.no_grad():
        before = loss_fn(model, batch)
        model[0].weight[0, 0] = 0
        difference = (before - loss_fn(model, batch)).abs()
    assert found == pytest.approx(float(difference), rel=1e-3)


def test_sensitivity_leaves_gradients_and_mode_alone(model, batches):
    model.eval()
    model[0].weight.grad = torch.full_like(model[0].weight, 3.0)
    sensitivity(model, batches, loss_fn)
    assert torch.equal(model[0].weight.grad, torch.full_like(model[0].weight, 3.0))
    assert model[2].weight.grad is None
    assert not model.training


def test_a_parameter_without_a_part_has_none(batches):
    model = nn.Sequential(nn.Linear(6, 2))
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    assert sensitivity(model, batches, loss_fn)["unused"].tolist() == [0.0] * 3


def test_no_batch_and_no_name_are_refused(model, batches):
    with pytest.raises(ConfigurationError, match="batches is empty"):
        sensitivity(model, [], loss_fn)
    with pytest.raises(ConfigurationError, match=r"'attention': the first names are 0\.weight"):
        sensitivity(model, batches, loss_fn, pattern="attention")


def test_the_tracker_counts_what_numpy_counts(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SensitivityTracker(model, optimizer, every=2)
    expected = []
    for batch in batches:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        values = [np.abs((p * p.grad).detach().numpy()).ravel() for p in model.parameters()]
        expected.append(np.concatenate(values))
        optimizer.step()
    assert [record["step"] for record in tracker.records] == [1, 3]
    for record, values in zip(tracker.records, [expected[0], expected[2]], strict=True):
        counts, _ = np.histogram(np.log10(values[values > 0]), tracker.edges())
        assert record["counts"] == counts.tolist()
        assert record["zeros"] == pytest.approx((values == 0).mean())
        width = tracker.edges()[1] - tracker.edges()[0]
        for q, value in record["quantiles"].items():
            assert value == pytest.approx(np.quantile(np.log10(values[values > 0]), float(q)), abs=2 * width)


def test_zero_gradients_are_counted_apart(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SensitivityTracker(model, optimizer)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    [record] = tracker.records
    assert record["zeros"] == 1.0
    assert sum(record["counts"]) == 0
    assert set(record["quantiles"].values()) == {None}


def test_a_tracker_that_was_removed_or_restored(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SensitivityTracker(model, optimizer, every=2)
    loss_fn(model, batches[0]).backward()
    optimizer.step()
    state = copy.deepcopy(tracker.state_dict())
    tracker.remove()
    optimizer.step()
    assert len(tracker.records) == 1
    restored = SensitivityTracker(model, optimizer, every=2)
    restored.load_state_dict(state)
    optimizer.step()
    optimizer.step()
    assert [record["step"] for record in restored.records] == [1, 3]


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_pruning_takes_the_least_sensitive_and_gives_them_back(model, sparsity):
    before = copy.deepcopy(model.state_dict())
    scores = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    with pruned(model, scores, sparsity):
        gone = torch.cat([(p == 0).reshape(-1) for p in model.parameters()])
        values = torch.cat([scores[name].reshape(-1) for name, _ in model.named_parameters()])
    assert int(gone.sum()) == int(sparsity * len(values))
    if 0 < sparsity < 1:
        assert values[gone].max() < values[~gone].min()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_ties_do_not_change_the_number(model):
    scores = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with pruned(model, scores, 0.5):
        gone = sum(int((p == 0).sum()) for p in model.parameters())
    assert gone == sum(p.numel() for p in model.parameters()) // 2


def test_parameters_come_back_after_an_error(model):
    before = copy.deepcopy(model.state_dict())
    scores = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), pruned(model, scores, 0.9):
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_curve_evaluates_each_sparsity(model):
    scores = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    total = sum(p.numel() for p in model.parameters())
    curve = sparsity_curve(
        model, scores, lambda m: sum(int((p != 0).sum()) for p in m.parameters()), (0.0, 0.25, 1.0)
    )
    assert curve == [(0.0, total), (0.25, total - int(0.25 * total)), (1.0, 0)]


def test_plots_show_what_was_recorded(model, batches):
    from sensitivity_lr.plots import plot_distribution, plot_sparsity_curves

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tracker = SensitivityTracker(model, optimizer, every=1)
    loss_fn(model, batches[0]).backward()
    optimizer.step()
    axes = plot_distribution(tracker.records)
    assert axes.get_yscale() == "log"
    drawn = axes.patches[0].get_data().values
    assert drawn.sum() == pytest.approx(1.0)
    axes = plot_sparsity_curves({"sage": [(0.0, 0.9), (0.5, 0.6)]}, "accuracy")
    assert axes.lines[0].get_ydata().tolist() == [0.9, 0.6]


def test_the_monitor_reports_the_record_of_its_step(model, batches):
    from sensitivity_lr.slots import SensitivityMonitor, SensitivityOptions

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = SensitivityMonitor(SensitivityOptions(every=2)).attach(model, optimizer)
    loss_fn(model, batches[0]).backward()
    seen = []
    for step in (1, 2, 3):
        optimizer.step()
        seen.append(handle.on_step(step))
    assert [bool(entry) for entry in seen] == [True, False, True]
    assert seen[2]["sensitivity"]["step"] == 3
    state = handle.state_dict()
    handle.remove()
    resumed = SensitivityMonitor(SensitivityOptions(every=2)).attach(model, optimizer)
    resumed.load_state_dict(state)
    assert resumed.on_step(4) == {}  # the scaler has left this one out
    seen = []
    for step in (5, 6):
        optimizer.step()
        seen.append(resumed.on_step(step))
    assert [bool(entry) for entry in seen] == [False, True]
