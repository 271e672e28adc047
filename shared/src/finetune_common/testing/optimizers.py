"""The contracts of an element-wise optimizer, as a table of cases × a list of contracts.

    @pytest.mark.parametrize("check", check_optimizer(SageAdamW, CASES))
    def test_sage_adamw(check):
        check()

Every case meets every contract of `CONTRACTS`; the cases marked `costly` also those of `COSTLY_CONTRACTS`
(compilation, accelerate, Trainer), and all of them together one run on two processes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from finetune_common.optim import ElementwiseOptimizer
from finetune_common.testing.distributed import check_two_processes

__all__ = ["CONTRACTS", "COSTLY_CONTRACTS", "OptimizerCase", "check_optimizer"]

Factory = Callable[..., ElementwiseOptimizer]
Reference = Callable[[list[np.ndarray], list[np.ndarray], dict[str, Any], int], list[np.ndarray]]

SHAPES = [(4, 3), (5,), (1,), (), (0, 2), (3, 7), (20_001,)]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""Largest ‖a-b‖/‖b‖ between two ways of running ten steps, by the parameters' dtype."""


@dataclass(frozen=True)
class OptimizerCase:
    """One row of the table.

    Args:
        name: Shown in the test's name.
        settings: Keyword arguments of the optimizer.
        reference: The optimizer written again in float64 NumPy, from its equations:
            `reference(params, grads, state, t) -> new params` over all tensors at step t (from 1); `state`
            is an empty dictionary at first and is handed back at each step.
        convergent: Settings that differ where it has to minimise the quadratic and the Rosenbrock function.
        costly: Whether the costly contracts apply; at most four cases a package.
    """

    name: str
    settings: Mapping[str, Any]
    reference: Reference
    convergent: Mapping[str, Any] = field(default_factory=dict)
    costly: bool = False


def check_optimizer(cls: Factory, cases: Sequence[OptimizerCase]) -> list[Any]:
    """Return the checks of an optimizer, for `pytest.mark.parametrize`; each is called without arguments.

    Args:
        cls: The optimizer's class, or a function with its signature: (params, **settings).
        cases: The table.

    Examples:
        >>> from finetune_common.testing import check_optimizer
        >>> check_optimizer(torch.optim.SGD, [])
        []
    """
    costly = [case for case in cases if case.costly]
    checks = [(case, contract) for contract in CONTRACTS for case in cases]
    checks += [(case, contract) for contract in COSTLY_CONTRACTS for case in costly]
    name = cls.__name__
    params = [
        pytest.param(partial(f, cls, case), id=f"{name}-{case.name}-{f.__name__}") for case, f in checks
    ]
    if costly:
        settings = [dict(case.settings) for case in costly]
        two = partial(check_two_processes, cls, settings)
        params.append(pytest.param(two, id=f"{name}-{'+'.join(case.name for case in costly)}-two_processes"))
    return params


def _parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    params[5] = params[5].t()
    return [nn.Parameter(param) for param in params]


def _gradients(params: Sequence[Tensor], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in params]


def _train(optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], steps: Sequence[int]) -> None:
    for step in steps:
        for param, grad in zip(params, _gradients(params, step), strict=True):
            param.grad = grad
        optimizer.step()


def _trained(
    cls: Factory, steps: int, dtype: torch.dtype = torch.float32, **settings: Any
) -> list[nn.Parameter]:
    params = _parameters(dtype)
    _train(cls(params, **settings), params, range(steps))
    return params


def _assert_close(actual: Sequence[Tensor], expected: Sequence[Any], tolerance: float) -> None:
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        a, b = a.detach().double(), torch.as_tensor(b).detach().double()
        assert torch.isfinite(a).all(), f"tensor {i} is not finite"
        error = torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b).clamp(min=1e-30)
        assert error <= tolerance, f"tensor {i} of shape {tuple(a.shape)}: {error:.2e} > {tolerance:.2e}"


def _assert_equal(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert torch.equal(a, b), f"tensor {i} of shape {tuple(a.shape)} differs"


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[Any, str, Tensor]]:
    for key, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                yield key, name, value


def _saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@contextmanager
def _torch_may_deprecate_itself() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def agrees_with_reference(cls: Factory, case: OptimizerCase) -> None:
    """The reference path follows the NumPy reference: 30 steps to 1e-12 in float64, 10 to 1e-5 in float32."""
    for dtype, steps, tolerance in ((torch.float64, 30, 1e-12), (torch.float32, 10, 1e-5)):
        params = _parameters(dtype)
        expected = [param.detach().double().clone().numpy() for param in params]
        optimizer, state = cls(params, fused=False, foreach=False, **case.settings), {}
        for step in range(steps):
            grads = _gradients(params, step)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
            expected = case.reference(expected, [grad.double().numpy() for grad in grads], state, step + 1)
        _assert_close(params, expected, tolerance)


def foreach_equals_reference(cls: Factory, case: OptimizerCase) -> None:
    """Running over lists changes nothing, in any dtype."""
    for dtype, tolerance in TOLERANCE.items():
        expected = _trained(cls, 10, dtype, fused=False, foreach=False, **case.settings)
        _assert_close(_trained(cls, 10, dtype, foreach=True, **case.settings), expected, tolerance)


def state_survives(cls: Factory, case: OptimizerCase) -> None:
    """State of bfloat16 parameters is float32 and comes back exact from a file, and from a deep copy."""
    params = _parameters(torch.bfloat16)
    optimizer = cls(params, **case.settings)
    _train(optimizer, params, range(3))
    before = optimizer.state_dict()
    other = cls(_parameters(torch.bfloat16), **case.settings)
    other.load_state_dict(_saved_and_loaded(before))
    sharing = cls(_parameters(torch.bfloat16), **case.settings)
    sharing.load_state_dict(before)
    for after in (other.state_dict(), sharing.state_dict(), deepcopy(optimizer).state_dict()):
        pairs = list(zip(_tensors(before), _tensors(after), strict=True))
        assert pairs
        for (key, name, old), (other_key, other_name, new) in pairs:
            assert (key, name) == (other_key, other_name)
            assert new.dtype == old.dtype == torch.float32, f"{name} is {new.dtype}"
            assert torch.equal(old, new), f"{name} changed"
            assert old.numel() == 0 or old.data_ptr() != new.data_ptr(), f"{name} shares memory"
        assert after["param_groups"] == before["param_groups"]


def resumes_exactly(cls: Factory, case: OptimizerCase) -> None:
    """Ten steps equal five, a file, and five more, bit for bit."""
    for dtype in (torch.float32, torch.bfloat16):
        expected = _trained(cls, 10, dtype, **case.settings)
        params = _parameters(dtype)
        first = cls(params, **case.settings)
        _train(first, params, range(5))
        resumed = [nn.Parameter(param.detach().clone()) for param in params]
        second = cls(resumed, **case.settings)
        second.load_state_dict(_saved_and_loaded(first.state_dict()))
        _train(second, resumed, range(5, 10))
        _assert_equal(resumed, expected)


def takes_a_tensor_learning_rate(cls: Factory, case: OptimizerCase) -> None:
    """A learning rate in a tensor does what the number does."""
    settings = {**case.settings, "lr": torch.tensor(case.settings["lr"], dtype=torch.float64)}
    _assert_equal(_trained(cls, 5, **settings), _trained(cls, 5, **case.settings))


def maximizes(cls: Factory, case: OptimizerCase) -> None:
    """maximize=True with -g is minimising with g."""
    expected = _trained(cls, 5, **case.settings)
    params = _parameters()
    optimizer = cls(params, maximize=True, **case.settings)
    for step in range(5):
        for param, grad in zip(params, _gradients(params, step), strict=True):
            param.grad = -grad
        optimizer.step()
    _assert_equal(params, expected)


def leaves_what_has_no_gradient(cls: Factory, case: OptimizerCase) -> None:
    """Parameters without a gradient stay, and take their first step when they get one."""
    params = _parameters()
    before = [param.detach().clone() for param in params]
    optimizer = cls(params, **case.settings)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    _assert_equal(params[1:], before[1:])
    late, early = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = cls([late], **case.settings)
    optimizer.step()
    for step in range(4):
        late.grad, early.grad = torch.full((3,), 1.0 + step), torch.full((3,), 1.0 + step)
        if step == 0:
            reference = cls([early], **case.settings)
        optimizer.step()
        reference.step()
    _assert_equal([late], [early])


def evaluates_a_closure_once(cls: Factory, case: OptimizerCase) -> None:
    """A closure is called once, with gradients enabled, and its loss is returned."""
    param, calls = nn.Parameter(torch.ones(3)), []
    optimizer = cls([param], **case.settings)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        calls.append(loss)
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert len(calls) == 1
    assert param.grad is not None


def has_groups(cls: Factory, case: OptimizerCase) -> None:
    """Groups have settings of their own, and one may join later."""
    still, moving, joining = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = cls([{"params": [still], "lr": 0.0}, {"params": [moving]}], **case.settings)
    optimizer.add_param_group({"params": [joining]})
    for step in range(3):
        for param in (still, moving, joining):
            param.grad = torch.full((3,), 1.0 + step)
        optimizer.step()
    assert torch.equal(still, torch.ones(3))
    assert torch.equal(moving, joining)
    assert not torch.equal(moving, still)


def refuses_what_it_cannot_do(cls: Factory, case: OptimizerCase) -> None:
    """Sparse and complex gradients and illegal learning rates get one clear line."""
    embedding = nn.Embedding(4, 2, sparse=True)
    optimizer = cls(embedding.parameters(), **case.settings)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigurationError, match="sparse gradient"):
        optimizer.step()
    with pytest.raises(ConfigurationError, match="complex"):
        cls([nn.Parameter(torch.ones(2, dtype=torch.complex64))], **case.settings)
    for lr in (-1.0, float("nan")):
        with pytest.raises(ConfigurationError, match="lr"):
            cls([nn.Parameter(torch.ones(2))], **{**case.settings, "lr": lr})


def converges(cls: Factory, case: OptimizerCase) -> None:
    """With noisy gradients u·∇f, u uniform in [½, 1½], a quadratic and Rosenbrock's function fall by 90%."""
    settings = {**case.settings, **case.convergent}
    curvature = torch.tensor([10.0, 20.0, 50.0])

    def quadratic(x: Tensor) -> Tensor:
        return (curvature * x**2).sum()

    def rosenbrock(x: Tensor) -> Tensor:
        return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2

    for function, start, steps in ((quadratic, [1.0, -2.0, 1.5], 200), (rosenbrock, [-1.2, 1.0], 600)):
        generator = torch.Generator().manual_seed(0)
        x = nn.Parameter(torch.tensor(start))
        optimizer = cls([x], **settings)
        first = function(x).item()
        for _ in range(steps):
            optimizer.zero_grad()
            ((0.5 + torch.rand((), generator=generator)) * function(x)).backward()
            optimizer.step()
        assert function(x).item() < 0.1 * first, function.__name__


def is_untouched_by_a_skipped_step(cls: Factory, case: OptimizerCase) -> None:
    """A step that GradScaler skips leaves no trace."""

    def train(poisoned: bool) -> list[nn.Parameter]:
        params = _parameters()
        optimizer = cls(params, **case.settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in (0, None, 1) if poisoned else (0, 1):
            grads = _gradients(params, step or 0)
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad * (scaler.get_scale() if step is not None else torch.inf)
            scaler.scale(torch.zeros(()))
            scaler.step(optimizer)
            scaler.update()
        return params

    _assert_equal(train(poisoned=True), train(poisoned=False))


def fused_equals_reference(cls: Factory, case: OptimizerCase) -> None:
    """Compiled code agrees with the reference, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        expected = _trained(cls, 10, dtype, fused=False, foreach=False, **case.settings)
        with _torch_may_deprecate_itself():
            actual = _trained(cls, 10, dtype, fused=True, **case.settings)
        _assert_close(actual, expected, TOLERANCE[dtype])


def does_not_recompile(cls: Factory, case: OptimizerCase) -> None:
    """A hundred steps of a schedule run the code that the first two compiled."""
    params = _parameters()
    optimizer = cls(params, fused=True, **case.settings)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for step in range(100):
        with _torch_may_deprecate_itself():
            _train(optimizer, params, [step])
        schedule.step()
        if step == 1:
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled > 0


def works_in_accelerate(cls: Factory, case: OptimizerCase) -> None:
    """`prepare` keeps the state and its dtype, and training goes on as without."""
    accelerate = pytest.importorskip("accelerate")
    expected = _trained(cls, 6, torch.bfloat16, **case.settings)
    params = _parameters(torch.bfloat16)
    optimizer = cls(params, **case.settings)
    _train(optimizer, params, range(3))
    prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    dtypes = {value.dtype for _, _, value in _tensors(optimizer.state_dict())}
    assert dtypes == {torch.float32}
    _train(prepared, params, range(3, 6))
    _assert_equal(params, expected)


def works_in_trainer(cls: Factory, case: OptimizerCase) -> None:
    """transformers' Trainer trains with it (`optimizers=`) as a plain loop does."""
    transformers = pytest.importorskip("transformers")

    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(3, 1)

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            return {"loss": ((self.linear(x)[:, 0] - labels) ** 2).mean()}

    generator = torch.Generator().manual_seed(0)
    rows = [
        {"x": torch.randn(3, generator=generator), "labels": torch.randn((), generator=generator)}
        for _ in range(4)
    ]
    by_trainer, by_loop = Regression(), Regression()
    arguments = transformers.TrainingArguments(
        output_dir="unused",
        max_steps=6,
        per_device_train_batch_size=4,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
    )
    optimizer = cls(by_trainer.parameters(), **case.settings)
    trainer = transformers.Trainer(by_trainer, arguments, train_dataset=rows, optimizers=(optimizer, None))
    trainer.train()
    optimizer = cls(by_loop.parameters(), **case.settings)
    x, labels = torch.stack([row["x"] for row in rows]), torch.stack([row["labels"] for row in rows])
    for _ in range(6):
        optimizer.zero_grad()
        by_loop(x, labels)["loss"].backward()
        optimizer.step()
    _assert_close(list(by_trainer.parameters()), list(by_loop.parameters()), 1e-4)


CONTRACTS = (
    agrees_with_reference,
    foreach_equals_reference,
    state_survives,
    resumes_exactly,
    takes_a_tensor_learning_rate,
    maximizes,
    leaves_what_has_no_gradient,
    evaluates_a_closure_once,
    has_groups,
    refuses_what_it_cannot_do,
    converges,
    is_untouched_by_a_skipped_step,
)
"""What every case meets."""

COSTLY_CONTRACTS = (fused_equals_reference, does_not_recompile, works_in_accelerate, works_in_trainer)
"""What the cases marked costly meet as well."""
