"""The fused rules of all optimizers, for a tool that lowers pure functions to CUDA kernels without a GPU.

`CASES` maps a name to (function, make_args). A function takes the flat tensors of several parameters and does
what a fused step does on a GPU, one call for all tensors. Perfect is one kernel a tensor or fewer and as many
bytes moved as its inputs and outputs hold.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.optim import ElementwiseOptimizer
from finetune_common.optim.run import Rule, advance
from sensitivity_lr import SageAdamax, SageAdamW, SageSGD
from sensitivity_lr.rules import rescale

SIZES = [30522 * 768, 768 * 3072, 3072, 768 * 768, 768, 2]


def step_at_once(rule: Rule, columns: int, names: tuple[str, ...]) -> Callable[..., None]:
    """Return `step(*tensors, packed)` for columns (param, grad, state…) of `SIZES` tensors each."""

    def step(*arguments: Tensor) -> None:
        *tensors, packed = arguments
        scalars = dict(zip(names, packed.unbind(), strict=True))
        for i in range(len(SIZES)):
            advance(rule, tensors[i :: len(SIZES)], scalars)

    return step


def case(
    rule: Rule, names: tuple[str, ...], states: int, dtype: torch.dtype = torch.float32
) -> tuple[Callable[..., None], Callable[[], tuple[Tensor, ...]]]:
    dtypes = [dtype, dtype, *[torch.float32] * states]

    def make_args() -> tuple[Tensor, ...]:
        tensors = [torch.empty(size, dtype=kind, device="cuda") for kind in dtypes for size in SIZES]
        return *tensors, torch.empty(len(names), device="cuda")

    return step_at_once(rule, len(dtypes), names), make_args


def case_of(cls: type[ElementwiseOptimizer], dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    optimizer = cls([nn.Parameter(torch.empty(1))], lr=1e-4, **settings)  # type: ignore[call-arg]
    [group] = optimizer.param_groups
    update, static = optimizer.rule(group)
    names = tuple(optimizer.scalars(group, 1))
    return case(Rule(update, tuple(static.items())), names, len(optimizer.initial_state(group)), dtype)


CASES = {
    "sage-adamw": case_of(SageAdamW),
    "sage-adamw paper": case_of(SageAdamW, form="paper"),
    "sage-adamw legacy": case_of(SageAdamW, legacy=True),
    "sage-adamw bf16": case_of(SageAdamW, torch.bfloat16),
    "sage-adamax": case_of(SageAdamax),
    "sage-sgd": case_of(SageSGD),
    "sage-sgd nesterov": case_of(SageSGD, momentum=0.9, nesterov=True),
    "sage around any": case(Rule(rescale, (("form", "released"),)), ("weight", "remainder", "s"), 2),
}

if find_spec("clipped_adaptive"):
    from clipped_adaptive import ClippedAdaGrad, ClippedAdam

    CASES |= {
        "clipped-adam elementwise": case_of(ClippedAdam, clip="elementwise"),
        "clipped-adagrad elementwise": case_of(ClippedAdaGrad, clip="elementwise"),
    }
