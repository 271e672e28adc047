"""The kernels of activation compression, for a tool that lowers pure functions to CUDA kernels without a GPU.

`CASES` maps a name to (function, make_args). Perfect is one kernel that moves as many bytes as its inputs and
outputs hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from activation_compression import rules

ELEMENTS = 16 * 128 * 3072
GROUP = 256


def empty(count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, dtype=dtype, device="cuda")


def quantise(bits: int, dtype: torch.dtype) -> Any:
    def run(x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        return rules.encode(x, bits, GROUP, keys)

    return run, lambda: (empty(ELEMENTS, dtype), empty(2, torch.int32))


def dequantise(bits: int, dtype: torch.dtype) -> Any:
    def run(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
        return rules.decode(codes, low, step, bits, GROUP, dtype)

    def make_args() -> tuple[Tensor, ...]:
        low, step = (empty(ELEMENTS // GROUP, torch.bfloat16) for _ in range(2))
        return empty(ELEMENTS * bits // 8, torch.uint8), low, step

    return run, make_args


def values(dtype: torch.dtype) -> list[Tensor]:
    return [empty(1, dtype).view(()) for _ in range(2)]


def gate(x: Tensor) -> Tensor:
    return rules.encode_gate(x, 0.0, float("inf"))


CASES = (
    {
        f"{name} {bits} {str(dtype).removeprefix('torch.')}": make(bits, dtype)
        for name, make in (("quantise", quantise), ("dequantise", dequantise))
        for bits in (1, 2, 4, 8)
        for dtype in (torch.float32, torch.bfloat16)
    }
    | {
        f"{name} {str(dtype).removeprefix('torch.')}": case
        for dtype in (torch.bool, torch.float32)
        for name, case in (
            ("pack mask", (rules.encode_flags, lambda dtype=dtype: (empty(ELEMENTS, dtype), *values(dtype)))),
            (
                "unpack mask",
                (rules.decode_flags, lambda dtype=dtype: (empty(ELEMENTS // 8, torch.uint8), *values(dtype))),
            ),
        )
    }
    | {
        f"gate {str(dtype).removeprefix('torch.')}": (gate, lambda dtype=dtype: (empty(ELEMENTS, dtype),))
        for dtype in (torch.float32, torch.bfloat16)
    }
)
