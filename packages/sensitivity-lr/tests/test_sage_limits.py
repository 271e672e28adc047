"""What the equations say at their limits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_common.errors import ConfigurationError
from sensitivity_lr import Sage, SageAdamax, SageAdamW, SageSGD
from sensitivity_lr.rules import sage_factor


def optimized(build, steps=50, shapes=((37, 5), (3,), (), (1,), (130, 131))):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = build(params)
    for step in range(steps):
        torch.manual_seed(step + 1)
        for param in params:
            param.grad = torch.randn(param.shape)
        optimizer.step()
    return params


def plain(cls, **given):
    return lambda params: cls([{"params": params, "sage": False}], fused=False, foreach=False, **given)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            plain(SageAdamW, lr=0.01, betas=(0.8, 0.95), eps=1e-7, weight_decay=decay),
            lambda params, decay=decay: torch.optim.AdamW(
                params, lr=0.01, betas=(0.8, 0.95), eps=1e-7, weight_decay=decay, foreach=False
            ),
        )
        for decay in (0.0, 0.3)
    ]
    + [
        (
            plain(SageAdamax, lr=0.01, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.0),
            lambda params: torch.optim.Adamax(params, lr=0.01, betas=(0.8, 0.95), eps=1e-7, foreach=False),
        )
    ]
    + [
        (
            plain(SageSGD, lr=0.01, momentum=momentum, nesterov=nesterov),
            lambda params, momentum=momentum, nesterov=nesterov: torch.optim.SGD(
                params, lr=0.01, momentum=momentum, nesterov=nesterov, foreach=False
            ),
        )
        for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
    ],
    ids=["adamw", "adamw-decay", "adamax", "sgd", "sgd-momentum", "sgd-nesterov"],
)
def test_without_sage_it_is_torchs_optimizer_bit_for_bit(ours, theirs):
    for a, b in zip(optimized(ours), optimized(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("beta3", [0.6, 0.75, 0.85])
def test_the_first_released_adamw_step_is_exactly_nothing(beta3):
    def released(params):
        return SageAdamW(params, lr=1.0, beta3=beta3, weight_decay=0.0, form="released")

    before, after = optimized(released, steps=0), optimized(released, steps=1)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("beta3", [0.5, 0.75, 0.875])
def test_the_first_released_adamax_factor_is_exactly_beta3_over_one_minus_beta3(beta3):
    theta, g = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 0.25, -8.0])
    factor, _ = sage_factor(
        theta, g, torch.zeros(3), weight=1 - beta3, remainder=beta3, s=1e-12, form="released"
    )
    assert torch.equal(factor, torch.full((3,), beta3 / (1 - beta3)))


@given(
    beta3=st.floats(0.01, 0.99),
    history=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=12),
    corrected=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_the_released_factor_is_bounded(beta3, history, corrected):
    average, one = torch.zeros(1), torch.ones(1)
    bound = torch.tensor(max(1.0, beta3 / (1 - beta3)))
    for t, sensitivity in enumerate(history, 1):
        weight = (1 - beta3) / (1 - beta3**t) if corrected else 1 - beta3
        factor, average = sage_factor(
            one,
            torch.tensor([sensitivity]),
            average,
            weight=weight,
            remainder=1 - weight,
            s=1e-12,
            form="released",
        )
        assert 0 <= factor <= bound * (1 + 4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize(("sensitivity", "s"), [(1e-9, 1e-8), (1e-6, 1e-8), (2.0, 1e-3)])
def test_with_constant_sensitivity_the_papers_factor_tends_to_s_over_i_plus_s(sensitivity, s):
    average, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    for _ in range(400):
        factor, average = sage_factor(
            one, sensitivity * one, average, weight=0.25, remainder=0.75, s=s, form="paper"
        )
    torch.testing.assert_close(factor, torch.full_like(factor, s / (sensitivity + s)), rtol=1e-9, atol=0)


def test_a_parameter_that_never_gets_a_gradient_stays_finite_and_unmoved():
    for form in ("released", "paper"):
        param = torch.nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))
        optimizer = SageAdamW([param], lr=0.1, weight_decay=0.0, form=form)
        for _ in range(3):
            param.grad = torch.zeros(3)
            optimizer.step()
        assert torch.equal(param.detach(), torch.tensor([1.0, 0.0, -1.0]))


def moves_of_zeros(optimizer, params):
    for step in range(3):
        for param in params:
            param.grad = torch.full_like(param, 1.0 + step)
        optimizer.step()
    return [bool(param.detach().any()) for param in params]


@pytest.mark.parametrize("running", [{"fused": False}, {"foreach": True}], ids=["reference", "foreach"])
@pytest.mark.parametrize("form", ["paper", "released"])
def test_what_begins_at_zero_moves_and_stays_in_the_released_code_alone(form, running):
    """LoRA's B, BitFit's offsets: |θ g| = 0, so the released factor is 0 / s."""
    for cls in (SageAdamW, SageAdamax, SageSGD):
        params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(3)]
        assert moves_of_zeros(cls(params, lr=0.1, form=form, **running), params) == [True] * 3
    params = [torch.nn.Parameter(torch.zeros(3))]
    assert moves_of_zeros(Sage(torch.optim.SGD(params, lr=0.1), form=form, **running), params) == [True]
    for cls in (SageAdamW, SageAdamax):
        params = [torch.nn.Parameter(torch.zeros(3))]
        assert moves_of_zeros(cls(params, lr=0.1, form=form, legacy=True, **running), params) == [
            form == "paper"
        ]


def test_the_first_step_of_a_zero_is_the_base_optimizers():
    for form in ("paper", "released"):
        ours, theirs = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
        for param, optimizer in (
            (ours, SageAdamW([ours], lr=0.1, form=form)),
            (theirs, torch.optim.AdamW([theirs], lr=0.1, eps=1e-6)),
        ):
            param.grad = torch.tensor([1.0, -3.0])
            optimizer.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def test_the_first_step_of_the_papers_form_is_three_times_the_base_optimizers():
    param = torch.nn.Parameter(torch.ones(1))
    param.grad = torch.ones(1)
    SageAdamW([param], lr=0.1, weight_decay=0.0).step()
    assert param.item() == pytest.approx(1 - 3 * 0.1, rel=1e-5)


def test_weight_decay_follows_the_schedule_and_legacy_decay_does_not():
    for legacy, expected in ((False, 1 - 0.1 * 0.5), (True, 1 - 1.0 * 0.5)):
        param = torch.nn.Parameter(torch.tensor([1.0]))
        optimizer = SageAdamW([param], lr=1.0, weight_decay=0.5, form="released", legacy=legacy)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1)
        param.grad = torch.ones(1)
        optimizer.step()  # the factor is 0 at step 1: only the decay acts
        assert param.item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: SageAdamW(p, lr=0.1, beta3=1.0), "beta3=1.0"),
        (lambda p: SageAdamW(p, lr=0.1, betas=(0.9, 1.5)), "beta2=1.5"),
        (lambda p: SageAdamW(p, lr=0.1, eps=0.0, form="released"), "sensitivity_eps"),
        (lambda p: SageAdamW(p, lr=0.1, form="papr"), "did you mean 'paper'"),
        (lambda p: SageAdamW(p, lr=0.1, weight_decay=-1.0), "weight_decay=-1.0"),
        (lambda p: SageAdamW(p, lr=0.1, foreach=True, fused=True), "exclude each other"),
        (lambda p: SageAdamW([{"params": p, "sage": "no"}], lr=0.1), "sage='no' is no truth value"),
        (lambda p: SageAdamW(p, lr=0.1, legacy="False"), "legacy='False' is no truth value"),
        (lambda p: SageAdamax(p, lr=0.1, maximize="False"), "maximize='False' is no truth value"),
        (lambda p: SageSGD(p, lr=0.1, momentum=0.9, nesterov="False"), "nesterov='False' is no truth value"),
        (lambda p: SageAdamW(p, lr=0.1, sensitivity_eps="1e-12"), "sensitivity_eps='1e-12' is not a number"),
        (lambda p: SageAdamW(p, lr=0.1, betas=(0.9, 0.99, 0.999)), "betas=.* is not a pair"),
        (lambda p: SageAdamW(p, lr=None), "lr=None is not a number"),
        (lambda p: Sage(torch.optim.SGD(p, lr=0.1), foreach="False"), "foreach='False' is no truth value"),
        (
            lambda p: Sage(torch.optim.SGD([{"params": p, "sage": "no"}], lr=0.1)).step(),
            "sage='no' is no truth value",
        ),
        (lambda p: SageAdamax(p, lr=0.1, sensitivity_eps=0.0), "sensitivity_eps=0.0"),
        (lambda p: SageSGD(p, lr=0.1, momentum=1.0), "momentum=1.0"),
        (lambda p: SageSGD(p, lr=0.1, nesterov=True), "nesterov"),
        (lambda p: Sage(torch.optim.SGD(p, lr=0.1), beta3=-0.1), "beta3=-0.1"),
        (lambda p: Sage(torch.optim.SGD(p, lr=0.1), form="other"), "form='other'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(build, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        build([torch.nn.Parameter(torch.ones(2))])
    assert "\n" not in str(raised.value)
