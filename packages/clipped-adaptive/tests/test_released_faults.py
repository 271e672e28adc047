"""The faults of the released code are impossible here (facts: arXiv 2406.04443's repositories)."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from clipped_adaptive import ALGORITHMS, ClippedAdaGrad, ClippedAdam, ClippedSGD, from_paper
from clipped_adaptive.clips import CLIPS
from finetune_common.errors import ConfigurationError

INITIAL = {ClippedAdam: "initial_second_moment", ClippedAdaGrad: "initial_accumulator"}


def delayed(cls, params, start=4.0, **settings):
    return cls(params, delay=True, **{INITIAL[cls]: start}, **settings)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("cls", INITIAL)
def test_delay_steps_along_the_current_gradient(cls, norm):
    """The released delayed AdaGrad steps along g_{t-1}; its first step does nothing."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = delayed(cls, [weight], lr=0.1, clip="none", norm=norm, eps=0.0)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == pytest.approx(-0.1 / 2)  # lr · g / √4
    before = weight.item()
    weight.grad = -torch.ones(1) * 100
    optimizer.step()
    assert weight.item() > before


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("cls", INITIAL)
def test_the_denominator_of_a_delayed_step_does_not_know_its_gradient(cls, norm):
    steps = []
    for size in (1.0, 1000.0):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = delayed(cls, [weight], lr=0.1, clip="none", norm=norm, eps=0.0)
        weight.grad = torch.full_like(weight, size)
        optimizer.step()
        steps.append(weight.item())
    assert steps[1] == pytest.approx(1000 * steps[0], rel=1e-12)


@pytest.mark.parametrize("cls", INITIAL)
def test_delay_does_not_depend_on_how_gradients_are_cleared(cls):
    """The released previous gradient is an alias: zero_grad(set_to_none=False) turns the delay off."""

    def train(set_to_none):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(4))
        optimizer = delayed(cls, [weight], lr=0.1, max_norm=0.5)
        for step in range(5):
            optimizer.zero_grad(set_to_none=set_to_none)
            (torch.arange(1.0, 5.0) * weight * (step - 1.5)).sum().backward()
            optimizer.step()
        return weight.detach()

    assert torch.equal(train(True), train(False))


@pytest.mark.parametrize(
    ("cls", "clip", "norm"),
    [*product((ClippedAdam, ClippedAdaGrad), CLIPS, (False, True)), *product((ClippedSGD,), CLIPS, (None,))],
)
@pytest.mark.parametrize("path", ["reference", "foreach"])
def test_gradients_are_not_changed_by_a_step(cls, clip, norm, path):
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(3))]
    settings = {} if norm is None else {"norm": norm}
    optimizer = cls(
        params, lr=0.1, clip=clip, max_norm=0.01, foreach=path == "foreach", fused=False, **settings
    )
    for param in params:
        param.grad = torch.randn_like(param)
    before = [param.grad.clone() for param in params]
    optimizer.step()
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad)


@pytest.mark.parametrize("cls", [ClippedAdam, ClippedAdaGrad, ClippedSGD])
@pytest.mark.parametrize("clip", ["no", "Local", "layerwise", "elementwize", "", None, False])
def test_a_misspelt_clip_mode_is_refused(cls, clip):
    with pytest.raises(ConfigurationError, match="clip="):
        cls([nn.Parameter(torch.ones(1))], lr=0.1, clip=clip)


@pytest.mark.parametrize("setting", [{"clip": "none"}, {"max_norm": 3.0}, {"norm": True}])
def test_settings_of_the_whole_optimizer_are_refused_in_a_group(setting):
    group = {"params": [nn.Parameter(torch.ones(1))], **setting}
    with pytest.raises(ConfigurationError, match="whole optimizer"):
        ClippedAdam([group], lr=0.1)


@pytest.mark.parametrize("cls", INITIAL)
def test_delay_without_an_initial_value_is_refused(cls):
    with pytest.raises(ConfigurationError, match="1e-5"):
        cls([nn.Parameter(torch.ones(1))], lr=0.1, delay=True)


BAD = [
    (ClippedAdam, {"betas": (1.0, 0.9)}, "beta1"),
    (ClippedAdam, {"betas": (0.9, -0.1)}, "beta2"),
    (ClippedAdam, {"eps": -1.0}, "eps"),
    (ClippedAdam, {"eta": 0.0}, "eta"),
    (ClippedAdam, {"initial_second_moment": -1.0}, "initial_second_moment"),
    (ClippedAdam, {"weight_decay": -0.1}, "weight_decay"),
    (ClippedAdam, {"max_norm": 0.0}, "max_norm"),
    (ClippedAdam, {"max_norm": float("nan")}, "max_norm"),
    (ClippedAdam, {"norm": "yes"}, "norm"),
    (ClippedAdam, {"bias_correction": None}, "bias_correction"),
    (ClippedAdaGrad, {"initial_accumulator": float("nan")}, "initial_accumulator"),
    (ClippedAdaGrad, {"delay": "no"}, "delay"),
    (ClippedSGD, {"momentum": 1.0}, "momentum"),
    (ClippedSGD, {"nesterov": True}, "momentum above 0"),
]


@pytest.mark.parametrize(("cls", "settings", "named"), BAD)
def test_bad_settings_are_refused_by_name(cls, settings, named):
    with pytest.raises(ConfigurationError, match=named) as caught:
        cls([nn.Parameter(torch.ones(1))], lr=0.1, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "setting"),
    [
        (ClippedAdam, {"betas": (0.9, 0.5)}),
        (ClippedAdam, {"eta": 2.0}),
        (ClippedAdam, {"eps": 1e-3}),
        (ClippedAdaGrad, {"eta": 2.0}),
        (ClippedAdaGrad, {"eps": 1e-3}),
    ],
)
def test_groups_that_share_one_second_moment_must_agree(cls, setting):
    groups = [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))], **setting}]
    cls(groups, lr=0.1)
    with pytest.raises(ConfigurationError, match="share one second moment"):
        cls(groups, lr=0.1, norm=True)


def paper(name, x, grads, lr, level, beta1=0.9, beta2=0.999, start=0.25):
    """The algorithms for one parameter tensor, as the paper states them."""
    kind, norm = name.removeprefix("Clip-"), name.endswith("-Norm")
    base = kind.removesuffix("-Norm")
    eta = lr**2 if base.startswith("R") else 1.0
    v, m = np.full_like(x, start), np.zeros_like(x)
    for g in grads:
        if name.startswith("Clip-"):
            g = g * min(1.0, level / np.linalg.norm(g))
        square = np.full_like(g, (g**2).sum()) if norm else g**2
        adam = "Adam" in base
        new = beta2 * v + (1 - beta2) * eta * square if adam else v + eta * square
        m = beta1 * m + (1 - beta1) * g if adam else g
        x = x - lr * m / np.sqrt(v if base.endswith("D") else new)
        v = new
    return x


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_algorithms_by_name_follow_the_paper(name):
    random = np.random.default_rng(0)
    start, grads = random.standard_normal(6), random.standard_t(1.5, size=(20, 6))
    weight = nn.Parameter(torch.tensor(start))
    initial = {INITIAL[ALGORITHMS[name][0]]: 0.25}
    optimizer = from_paper(name, [weight], lr=0.1, max_norm=0.5, eps=0.0, **initial)
    for grad in grads:
        weight.grad = torch.tensor(grad)
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), paper(name, start, grads, 0.1, 0.5), rtol=1e-12)


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(ConfigurationError, match=r"did you mean 'Clip-AdaGrad"):
        from_paper("Clip-AdagradD", [nn.Parameter(torch.ones(1))], lr=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda weights: from_paper("Clip-AdamD", weights),
            "^from_paper: missing a required argument: 'lr'$",
        ),
        (
            lambda weights: from_paper("Clip-AdamD", weights, 0.1, max_nrm=1.0),
            "^ClippedAdam has no argument max_nrm: did you mean 'max_norm'",
        ),
        (
            lambda weights: from_paper("Clip-AdaGradD", weights, lr=0.1, initial=1.0),
            "^ClippedAdaGrad has no argument initial: did you mean 'initial_accumulator'",
        ),
        (
            lambda weights: from_paper("Clip-AdamD", weights, 0.1, max_norm=nn.Linear(2, 2)),
            r"^max_norm=Linear\(\.\.\.\) is a model",
        ),
    ],
)
def test_wrong_arguments_of_an_algorithm_are_explained(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call([nn.Parameter(torch.ones(1))])


def released_adam(x, grads, lr, eps, decay, delay=False, initial=0.0, beta1=0.9, beta2=0.99):
    """Adam as released: ε beside the uncorrected root, decay of what the update has made.

    The bias is corrected with delay and an initial value too.
    """
    m, v = np.zeros_like(x), np.full_like(x, initial)
    for t, g in enumerate(grads, 1):
        m, old, v = beta1 * m + (1 - beta1) * g, v, beta2 * v + (1 - beta2) * g**2
        root = np.sqrt(old if delay else v)
        x = x - lr * np.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (root + eps)
        x = x - lr * decay * x
    return x


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("path", ["reference", "foreach"])
@pytest.mark.parametrize(("delay", "initial"), [(False, 0.0), (False, 1e-6), (True, 1e-6)])
def test_legacy_adam_is_the_released_one(norm, path, delay, initial):
    """ε is large beside the roots, so that its place shows; a scalar parameter is the limit of `norm`."""
    random = np.random.default_rng(0)
    size = 1 if norm else 8
    start, grads = random.standard_normal(size), 1e-3 * random.standard_normal((20, size))
    settings = {
        "lr": 0.1,
        "eps": 1e-3,
        "weight_decay": 0.5,
        "betas": (0.9, 0.99),
        "clip": "none",
        "norm": norm,
        "delay": delay,
        "initial_second_moment": initial,
    }
    moved = {}
    for legacy in (True, False):
        weight = nn.Parameter(torch.tensor(start))
        optimizer = ClippedAdam([weight], legacy=legacy, foreach=path == "foreach", fused=False, **settings)
        for grad in grads:
            weight.grad = torch.tensor(grad)
            optimizer.step()
        moved[legacy] = weight.detach().numpy()
    expected = released_adam(start, grads, 0.1, 1e-3, 0.5, delay, initial)
    np.testing.assert_allclose(moved[True], expected, rtol=1e-12)
    assert np.abs(moved[False] - expected).max() > 1e-2
