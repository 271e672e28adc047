"""The fused rules of all optimizers, for a tool that lowers pure functions to CUDA kernels without a GPU.

`CASES` maps a name to (function, make_args). A function takes the flat tensors of several parameters and does
what a fused step does on a GPU, one call for all tensors. Perfect is one kernel a tensor or fewer and as many
bytes moved as its inputs and outputs hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.optim import ElementwiseOptimizer
from finetune_common.optim.run import Rule, advance
from sensitivity_lr import SageAdamax, SageAdamW, SageSGD
from sensitivity_lr.rules import rescale

SIZES = [30522 * 768, 768 * 3072, 3072, 768 * 768, 768, 2]
LAYER = [*[1024 * 1024, 1024] * 4, 1024 * 4096, 4096, 4096 * 1024, 1024, *[1024] * 4]
LARGE_BERT = [28996 * 1024, 512 * 1024, 2 * 1024, 1024, 1024, *LAYER * 24, 1024 * 1024, 1024, 2 * 1024, 2]
"""Its 393 tensors."""


def step_at_once(rule: Rule, count: int, names: tuple[str, ...]) -> Callable[..., None]:
    """Return `step(*tensors, packed)` for columns (param, grad, state…) of `count` tensors each."""

    def step(*arguments: Tensor) -> None:
        *tensors, packed = arguments
        scalars = dict(zip(names, packed.unbind(), strict=True))
        for i in range(count):
            advance(rule, tensors[i::count], scalars)

    return step


def case(
    rule: Rule,
    names: tuple[str, ...],
    states: int,
    dtype: torch.dtype = torch.float32,
    sizes: Sequence[int] = SIZES,
) -> tuple[Callable[..., None], Callable[[], tuple[Tensor, ...]]]:
    dtypes = [dtype, dtype, *[torch.float32] * states]

    def make_args() -> tuple[Tensor, ...]:
        tensors = [torch.empty(size, dtype=kind, device="cuda") for kind in dtypes for size in sizes]
        return *tensors, torch.empty(len(names), device="cuda")

    return step_at_once(rule, len(sizes), names), make_args


def case_of(
    cls: type[ElementwiseOptimizer],
    dtype: torch.dtype = torch.float32,
    sizes: Sequence[int] = SIZES,
    **settings: Any,
) -> Any:
    optimizer = cls([nn.Parameter(torch.empty(1))], lr=1e-4, **settings)  # type: ignore[call-arg]
    [group] = optimizer.param_groups
    update, static = optimizer.rule(group)
    names = tuple(optimizer.scalars(group, 1))
    return case(Rule(update, tuple(static.items())), names, len(optimizer.initial_state(group)), dtype, sizes)


CASES = {
    "sage-adamw": case_of(SageAdamW),
    "sage-adamw paper": case_of(SageAdamW, form="paper"),
    "sage-adamw legacy": case_of(SageAdamW, legacy=True),
    "sage-adamw bf16": case_of(SageAdamW, torch.bfloat16),
    "sage-adamw, 393 tensors": case_of(SageAdamW, sizes=LARGE_BERT),
    "sage-adamax": case_of(SageAdamax),
    "sage-sgd": case_of(SageSGD),
    "sage-sgd nesterov": case_of(SageSGD, momentum=0.9, nesterov=True),
    "sage around any": case(Rule(rescale, (("form", "released"),)), ("weight", "remainder", "s"), 2),
}

if find_spec("clipped_adaptive"):
    from clipped_adaptive import ClippedAdaGrad, ClippedAdam

    CASES |= {
        "clipped-adam elementwise": case_of(ClippedAdam, clip="elementwise"),
        "clipped-adam elementwise, 393 tensors": case_of(ClippedAdam, sizes=LARGE_BERT, clip="elementwise"),
        "clipped-adagrad elementwise": case_of(ClippedAdaGrad, clip="elementwise"),
    }
