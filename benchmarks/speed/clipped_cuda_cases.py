"""The clipped rules with their norms, for a tool that lowers pure functions to CUDA kernels without a GPU.

`CASES` maps a name to (function, make_args, twice). A function takes the flat tensors of several parameters
and does what a step does: the norms, the coefficients, the fused rule. Clipping by norm has to read the
gradients twice; `twice` says where they are among the arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clipped_adaptive import ClippedAdaGrad, ClippedAdam, ClippedSGD
from clipped_adaptive.clipping import coefficients, norms_by_unit
from finetune_common.optim.run import Rule, advance

SIZES = [30522 * 768, 768 * 3072, 3072, 768 * 768, 768, 2]


def case_of(cls: type[Any], clip: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    """Return the case of an optimizer with a clip mode."""
    optimizer = cls([nn.Parameter(torch.empty(1))], lr=1e-4, clip=clip, **settings)
    [group] = optimizer.param_groups
    update, static = optimizer.rule(group)
    rule, names = Rule(update, tuple(static.items())), tuple(optimizer.scalars(group, 1))
    dtypes = [dtype, dtype, *[torch.float32] * len(optimizer.initial_state(group))]
    labels = list(range(len(SIZES))) if clip == "local" else ["whole"] * len(SIZES)
    by_norm = clip not in ("none", "elementwise")

    def step(*arguments: Tensor) -> None:
        *tensors, packed = arguments
        scalars = dict(zip(names, packed.unbind(), strict=True))
        own: list[dict[str, Tensor]] = [{} for _ in SIZES]
        if by_norm:
            grads = tensors[len(SIZES) : 2 * len(SIZES)]
            norms = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float32) for grad in grads])
            factors = coefficients(norms_by_unit(norms, labels), labels, 1.0)
            own = [{"coefficient": factor} for factor in factors.unbind()]
        for i in range(len(SIZES)):
            advance(rule, tensors[i :: len(SIZES)], {**scalars, **own[i]})

    def make_args() -> tuple[Tensor, ...]:
        tensors = [torch.empty(size, dtype=kind, device="cuda") for kind in dtypes for size in SIZES]
        return *tensors, torch.empty(len(names), device="cuda")

    return step, make_args, slice(len(SIZES), 2 * len(SIZES)) if by_norm else None


CASES: dict[str, tuple[Callable[..., None], Callable[[], tuple[Tensor, ...]], slice | None]] = {
    "clipped-adam none": case_of(ClippedAdam, "none"),
    "clipped-adam elementwise": case_of(ClippedAdam, "elementwise"),
    "clipped-adam local": case_of(ClippedAdam, "local"),
    "clipped-adam global": case_of(ClippedAdam, "global"),
    "clipped-adam local delayed": case_of(ClippedAdam, "local", delay=True, initial_second_moment=1e-5),
    "clipped-adam local bf16": case_of(ClippedAdam, "local", torch.bfloat16),
    "clipped-adagrad elementwise": case_of(ClippedAdaGrad, "elementwise"),
    "clipped-adagrad local": case_of(ClippedAdaGrad, "local"),
    "clipped-sgd global": case_of(ClippedSGD, "global", momentum=0.9),
}
