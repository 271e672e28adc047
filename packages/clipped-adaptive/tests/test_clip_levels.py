"""What shares a norm, at which level, and the report about it."""

import copy
import io
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clipped_adaptive import ClippedAdaGrad, ClippedAdam, ClippedSGD, RunningQuantile, layer_groups
from clipped_adaptive.clips import CLIPS
from finetune_common.errors import ConfigurationError
from finetune_common.testing.calls import Calls, as_on_a_gpu


def moved_by(optimizer, params, grads):
    """Take one step of SGD with lr 1: the change is minus the clipped gradient."""
    before = [param.detach().clone() for param in params]
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else torch.tensor(grad)
    optimizer.step()
    return [(old - new.detach()).tolist() for old, new in zip(before, params, strict=True)]


def zeros(*sizes):
    return [nn.Parameter(torch.zeros(size)) for size in sizes]


def test_a_layer_is_a_group():
    a, b, c = zeros(1, 1, 1)
    optimizer = ClippedSGD([{"params": [a, b]}, {"params": [c]}], lr=1.0, clip="layer", max_norm=1.0)
    assert moved_by(optimizer, [a, b, c], [[3.0], [4.0], [0.5]]) == [
        pytest.approx([0.6]),
        pytest.approx([0.8]),
        [0.5],
    ]


def test_groups_with_the_same_label_are_one_layer():
    a, b, c = zeros(1, 1, 1)
    groups = [{"params": [p], "layer": name} for p, name in ((a, "x"), (c, "y"), (b, "x"))]
    optimizer = ClippedSGD(groups, lr=1.0, clip="layer", max_norm=1.0)
    assert moved_by(optimizer, [a, b, c], [[3.0], [4.0], [0.5]]) == [
        pytest.approx([0.6]),
        pytest.approx([0.8]),
        [0.5],
    ]


def test_global_reaches_over_groups_dtypes_and_missing_gradients():
    a, b = zeros(1, 1)
    c, d = nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.zeros(1))
    optimizer = ClippedSGD([{"params": [a, d]}, {"params": [b, c]}], lr=1.0, clip="global", max_norm=1.0)
    for param, grad in ((a, 1.0), (b, 2.0), (c, 2.0)):
        param.grad = torch.full_like(param, grad)
    optimizer.step()
    assert [p.item() for p in (a, b, c, d)] == pytest.approx([-1 / 3, -2 / 3, -2 / 3, 0.0])


def test_layer_groups_follow_the_numbered_modules_and_share_a_norm():
    body = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = nn.ModuleDict({"body": body, "head": nn.Linear(2, 1)})
    groups = layer_groups(model, weight_decay=0.1)
    assert [group["layer"] for group in groups] == ["body.0", "body.0", "body.1", "body.1", "head", "head"]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0] * 3
    optimizer = ClippedSGD(groups, lr=0.1, clip="layer", max_norm=1.0)
    for param in model.parameters():
        param.grad = torch.full_like(param, 2.0)
    optimizer.step()
    report = optimizer.clip_report()
    assert report.norm_before == pytest.approx(2 * 15**0.5)
    assert report.norm_after == pytest.approx(3**0.5)


def test_layer_groups_take_a_pattern():
    stage = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    model = nn.ModuleDict({"stages": nn.ModuleList([stage])})
    layers = [group["layer"] for group in layer_groups(model, pattern=r"stages\.\d+\.\d+")]
    assert sorted(set(layers)) == ["stages.0.0", "stages.0.1"]


def test_the_level_may_follow_the_step():
    [weight] = zeros(1)
    seen = []

    def level(step):
        seen.append(step)
        return 1.0 / step

    for clip in ("global", "layer", "local", "elementwise"):
        optimizer = ClippedSGD([weight], lr=1.0, clip=clip, max_norm=level)
        moves = [moved_by(optimizer, [weight], [[5.0]])[0][0] for _ in range(3)]
        assert moves == pytest.approx([1.0, 1 / 2, 1 / 3]), clip
    assert seen == [1, 2, 3] * 4


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_level_that_a_function_returns_is_checked(value):
    [weight] = zeros(1)
    optimizer = ClippedSGD([weight], lr=1.0, max_norm=lambda step: value)
    with pytest.raises(ConfigurationError, match="max_norm at step 1"):
        moved_by(optimizer, [weight], [[5.0]])


class Schedule:
    def __call__(self, step):
        return 1.0 / step


@pytest.mark.parametrize("build", [ClippedAdam, ClippedAdaGrad, ClippedSGD])
@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (nn.Linear(2, 2), r"max_norm=Linear\(\.\.\.\) is a model"),
        (nn.Sequential(nn.Linear(2, 2)), r"max_norm=Sequential\(\.\.\.\) is a model"),
        (RunningQuantile, "the class RunningQuantile is a class"),
        (lambda: 1.0, "cannot be called with the step alone"),
        (lambda step, epoch: 1.0, "cannot be called with the step alone"),
        (lambda *, step: 1.0, "cannot be called with the step alone"),
        ("1.0", "max_norm='1.0' is not a number"),
        (None, "max_norm=None is not a number"),
        (torch.optim.SGD(zeros(1), lr=0.1), "is not a number"),
    ],
)
def test_what_is_no_level_is_refused_at_construction(build, value, fault):
    with pytest.raises(ConfigurationError, match=fault) as refusal:
        build(zeros(1), lr=0.1, max_norm=value)
    assert "\n" not in str(refusal.value)
    assert callable(value) == ("RunningQuantile(0.5)" in str(refusal.value))


@pytest.mark.parametrize(
    "level", [Schedule(), Schedule().__call__, lambda step, start=1.0: start / step, partial(max, 0.5)]
)
def test_any_function_of_the_step_is_a_level(level):
    [weight] = zeros(1)
    optimizer = ClippedSGD([weight], lr=1.0, max_norm=level)
    assert moved_by(optimizer, [weight], [[5.0]])[0][0] == pytest.approx(1.0)


@pytest.mark.parametrize("value", [None, "high", torch.ones(2), [1.0]])
def test_a_function_that_returns_no_number_is_named(value):
    [weight] = zeros(1)
    optimizer = ClippedSGD([weight], lr=1.0, max_norm=lambda step: value)
    with pytest.raises(ConfigurationError, match=r"max_norm at step 1 is .*: the function has to return a"):
        moved_by(optimizer, [weight], [[5.0]])


@settings(deadline=None, max_examples=50)
@given(
    norms=st.lists(st.floats(0.125, 64, width=32), min_size=2, max_size=12),
    q=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    window=st.integers(1, 5),
)
def test_the_running_quantile_is_that_of_the_past_norms(norms, q, window):
    [weight] = zeros(1)
    optimizer = ClippedSGD([weight], lr=1.0, max_norm=RunningQuantile(q, window))
    for t, norm in enumerate(norms):
        weight.data.zero_()
        [[moved]] = moved_by(optimizer, [weight], [[norm]])
        past = norms[max(0, t - window) : t]
        assert moved == pytest.approx(min(norm, np.quantile(past, q)) if past else norm, rel=1e-5)


def test_each_tensor_has_its_own_quantile_and_a_later_group_joins():
    a, b, c = zeros(1, 1, 1)
    optimizer = ClippedSGD([a, b], lr=1.0, clip="local", max_norm=RunningQuantile(0.5, 10))
    moved_by(optimizer, [a, b], [[1.0], [10.0]])
    moved_by(optimizer, [a, b], [None, [10.0]])
    optimizer.add_param_group({"params": [c]})
    assert moved_by(optimizer, [a, b, c], [[7.0], [20.0], [30.0]]) == [[1.0], [10.0], [30.0]]
    assert moved_by(optimizer, [a, b, c], [[7.0], [20.0], [40.0]]) == [[4.0], [10.0], [30.0]]


def test_an_infinite_norm_is_not_remembered():
    [weight] = zeros(1)
    optimizer = ClippedSGD([weight], lr=1.0, max_norm=RunningQuantile(1.0, 10))
    moved_by(optimizer, [weight], [[2.0]])
    moved_by(optimizer, [weight], [[torch.inf]])
    weight.data.zero_()
    assert moved_by(optimizer, [weight], [[5.0]]) == [[2.0]]


def test_past_norms_and_the_scalar_second_moment_survive_a_file():
    def train(weight, optimizer, steps):
        for step in steps:
            weight.grad = torch.tensor([1.0, 2.0]) * (step + 1)
            optimizer.step()

    def build(weight):
        level = RunningQuantile(0.5, 3)
        return ClippedAdaGrad([weight], lr=0.1, clip="global", max_norm=level, norm=True)

    whole, first = zeros(2, 2)
    expected, interrupted = build(whole), build(first)
    train(whole, expected, range(6))
    train(first, interrupted, range(4))
    file = io.BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    resumed = nn.Parameter(first.detach().clone())
    optimizer = build(resumed)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, optimizer, range(4, 6))
    assert torch.equal(resumed, whole)
    again = copy.deepcopy(interrupted)
    assert again.clip == "global"
    assert again.max_norm == RunningQuantile(0.5, 3)


@pytest.mark.parametrize("bad", [{"q": 0.0}, {"q": 1.5}, {"q": 0.5, "window": 0}])
def test_a_bad_quantile_is_refused(bad):
    with pytest.raises(ConfigurationError, match="out of range"):
        RunningQuantile(**bad)


def test_a_quantile_needs_norms():
    with pytest.raises(ConfigurationError, match="elementwise"):
        ClippedAdam(zeros(1), lr=0.1, clip="elementwise", max_norm=RunningQuantile(0.5))


@pytest.mark.parametrize("clip", CLIPS)
def test_the_report_says_what_a_step_did(clip):
    params = zeros(2, 1, 1)
    grads = [[3.0, 0.2], [4.0], [0.5]]
    optimizer = ClippedSGD(params, lr=1.0, clip=clip, max_norm=1.0)
    moved = moved_by(optimizer, params, grads)
    report = optimizer.clip_report()
    assert report.norm_before == pytest.approx(np.linalg.norm(np.concatenate(grads)))
    assert report.norm_after == pytest.approx(np.linalg.norm(np.concatenate(moved)))
    shares = {"none": 0.0, "global": 1.0, "layer": 1.0, "local": 2 / 3, "elementwise": 2 / 4}
    assert report.share == pytest.approx(shares[clip])


@pytest.mark.parametrize("clip", CLIPS)
def test_a_report_before_the_first_step_is_refused(clip):
    with pytest.raises(ConfigurationError, match="after step"):
        ClippedSGD(zeros(1), lr=1.0, clip=clip).clip_report()


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_step_does_not_wait_for_the_device(clip, norm, monkeypatch):
    """No value of a gradient is read by the host; the step counters, which live there, may be."""
    params = zeros(2, 3)
    level = 1.0 if clip == "elementwise" else RunningQuantile(0.5, 4)
    optimizer = ClippedAdam(params, lr=0.1, clip=clip, max_norm=level, norm=norm, foreach=True)
    read = []
    counters = lambda: {id(state["step"]) for state in optimizer.state.values() if "step" in state}  # noqa: E731
    for name in ("item", "tolist", "__bool__", "__float__", "cpu"):
        original = getattr(torch.Tensor, name)

        def spy(self, *args, original=original, name=name, **kwargs):
            if id(self) not in counters():
                read.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spy)
    calls = Calls()
    with as_on_a_gpu(lambda: calls):
        for _ in range(2):
            for param in params:
                param.grad = torch.ones_like(param)
            optimizer.step()
    monkeypatch.undo()
    assert read == []
