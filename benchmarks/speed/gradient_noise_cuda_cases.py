"""The kernels of gradient noise, for a tool that lowers pure functions to CUDA kernels without a GPU.

`CASES` maps a name to (function, make_args). Perfect is one kernel that moves as many bytes as its inputs and
outputs hold; the norm's read is a case of its own (it needs a second, tiny kernel over the rows' sums).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from noise_injection import kernels, lists

SIZE = 30522 * 768


def case(
    kernel: kernels.Kernel, tensors: int, numbers: int, dtype: torch.dtype = torch.float32
) -> tuple[Callable[..., None], Callable[[], tuple[Any, ...]]]:
    """Return a case: the gradient has `dtype`, what is kept beside it is float32."""

    def function(*arguments: Tensor) -> None:
        *own, row, keys = arguments
        kernel(own, row, keys)

    def make_args() -> tuple[Any, ...]:
        dtypes = [dtype] + [torch.float32] * (tensors - 1)
        own = [torch.empty(SIZE, dtype=kind, device="cuda") for kind in dtypes]
        return *own, torch.empty(numbers, device="cuda"), torch.empty(3, dtype=torch.int32, device="cuda")

    return function, make_args


LARGE = [28996 * 1024, 512 * 1024, *[*[1024 * 1024] * 4, *[1024 * 4096] * 2] * 24, 1024 * 1024]
"""The tensors of a large BERT that are not joined with others: one call for all."""


def together_case(kernel: kernels.Kernel, tensors: int, numbers: int) -> Any:
    """Return the case of a kernel over all large tensors of a model."""
    step = lists._together(kernel, tuple(LARGE)).function

    def function(*arguments: Tensor) -> None:
        *flat, table, keys = arguments
        step([flat[i :: len(LARGE)] for i in range(len(LARGE))], table, keys)

    def make_args() -> tuple[Any, ...]:
        flat = [torch.empty(size, device="cuda") for _ in range(tensors) for size in LARGE]
        table = torch.empty(len(LARGE), numbers, device="cuda")
        return *flat, table, torch.empty(len(LARGE), 3, dtype=torch.int32, device="cuda")

    return function, make_args


def sums_case(tensors: int) -> tuple[Callable[..., Tensor], Callable[[], tuple[Any, ...]]]:
    def function(*vectors: Tensor) -> Tensor:
        return kernels.row_products(vectors, torch.float32)

    def make_args() -> tuple[Any, ...]:
        rows = SIZE // kernels.ROW
        return tuple(torch.empty(rows, kernels.ROW, device="cuda") for _ in range(tensors))

    return function, make_args


CASES = {
    "observe": case(kernels.observe, 3, 1),
    "microbatch": case(kernels.add_microbatch, 2, 1),
    "microbatch bf16": case(kernels.add_microbatch, 2, 1, torch.bfloat16),
    "microbatch, 147 tensors": together_case(kernels.add_microbatch, 2, 1),
    "running": case(kernels.add_running, 3, 4),
    "ema": case(kernels.add_ema, 3, 5),
    "ema on Adam's averages": case(kernels.add_adam, 3, 3),
    "annealed": case(kernels.add_plain, 1, 1),
    "norm": sums_case(1),
    "norm and projection": sums_case(2),
}
