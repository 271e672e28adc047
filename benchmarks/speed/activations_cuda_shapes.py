"""More kernels of activation compression for the tool that lowers to CUDA: other dtypes and group sizes.

`CASES` as in `activations_cuda_cases.py`. All are one kernel that moves the bytes of its inputs and outputs,
but for quantising groups of a dozen elements or fewer, which are two kernels that move 2.3 times as many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from activation_compression import flags, rules

GROUPS = 16 * 128 * 12
MASK = 16 * 128 * 3072
HALVES = (torch.float16, torch.bfloat16)


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def name_of(*parts: Any) -> str:
    return " ".join(str(part).removeprefix("torch.") for part in parts)


def quantise(bits: int, size: int, dtype: torch.dtype) -> Any:
    def run(x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        return rules.encode(x.view(-1), bits, size, keys)

    return run, lambda: (empty(GROUPS, size, dtype=dtype), empty(2, dtype=torch.int32))


def dequantise(bits: int, size: int, dtype: torch.dtype) -> Any:
    def run(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
        return rules.decode(codes.view(-1), low, step, bits, size, dtype)

    def make_args() -> tuple[Tensor, ...]:
        codes = empty(GROUPS, size * bits // 8, dtype=torch.uint8)
        return codes, *(empty(GROUPS, dtype=torch.bfloat16) for _ in range(2))

    return run, make_args


def gate(low: float, high: float) -> Callable[[Tensor], Tensor]:
    return lambda x: flags.encode_gate(x, low, high)


def values(dtype: torch.dtype) -> list[Tensor]:
    return [torch.empty((), dtype=dtype, device="cuda") for _ in range(2)]


SHAPES = [(4, 256), (2, 256), (8, 256), (4, 64), (4, 100), (8, 5), (2, 12), (1, 96)]
"""Bits, and elements of a group filled up to whole bytes."""

CASES = (
    {
        name_of(kind, bits, "groups of", size, dtype): make(bits, size, dtype)
        for kind, make in (("quantise", quantise), ("dequantise", dequantise))
        for bits, size in SHAPES
        for dtype in HALVES
    }
    | {
        name_of("pack mask", dtype): (
            flags.encode_flags,
            lambda dtype=dtype: (empty(MASK, dtype=dtype), *values(dtype)),
        )
        for dtype in HALVES
    }
    | {
        name_of("unpack mask", dtype): (
            flags.decode_flags,
            lambda dtype=dtype: (empty(MASK // 8, dtype=torch.uint8), *values(dtype)),
        )
        for dtype in HALVES
    }
    | {
        name_of("gate", low, high, dtype): (gate(low, high), lambda dtype=dtype: (empty(MASK, dtype=dtype),))
        for low, high in ((0.0, float("inf")), (-1.0, 1.0))
        for dtype in (torch.float16, torch.bool)
    }
    | {
        "pack bools": (flags.encode_bits, lambda: (empty(MASK, dtype=torch.uint8),)),
        "unpack bools": (flags.decode_bits, lambda: (empty(MASK // 8, dtype=torch.uint8),)),
    }
)
