"""The kernels of activation compression, for a tool that lowers pure functions to CUDA kernels without a GPU.

`CASES` maps a name to (function, make_args). Perfect is one kernel that moves as many bytes as its inputs and
outputs hold.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from activation_compression import flags, rotation, rules

ELEMENTS = 16 * 128 * 3072
GROUP = 256
ROTATED = 64


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


def quantise_columns(bits: int, dtype: torch.dtype) -> Any:
    def run(x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
        return rules.encode_columns(x, bits, keys, columns_first=True)

    pieces = rules.PIECES
    shape = (ELEMENTS // (GROUP * 3072), pieces, GROUP // pieces, 3072)
    return run, lambda: (empty(ELEMENTS, dtype).view(shape), empty(2, torch.int32))


def dequantise_columns(bits: int, dtype: torch.dtype) -> Any:
    def run(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
        return rules.decode_columns(codes, low, step, bits, dtype, columns_first=True)

    def make_args() -> tuple[Tensor, ...]:
        pieces = rules.PIECES
        codes = empty(ELEMENTS // pieces, rules.WORDS[bits]).view(-1, 3072, GROUP // pieces)
        low, step = (empty(ELEMENTS // GROUP, torch.bfloat16).view(-1, 3072) for _ in range(2))
        return codes, low, step

    return run, make_args


def quantise_rotated(bits: int, dtype: torch.dtype) -> Any:
    def run(x: Tensor, keys: Tensor, mix: Tensor) -> tuple[Tensor, ...]:
        return rotation.encode(x, bits, ROTATED, keys, mix)

    return run, lambda: (empty(ELEMENTS, dtype), empty(2, torch.int32), mixing())


def dequantise_rotated(bits: int, dtype: torch.dtype) -> Any:
    def run(codes: Tensor, low: Tensor, step: Tensor, mix: Tensor) -> Tensor:
        return rotation.decode(codes, low, step, bits, dtype, mix)

    def make_args() -> tuple[Tensor, ...]:
        groups = ELEMENTS // ROTATED
        codes = empty(ELEMENTS // rules.PIECES, rules.WORDS[bits]).view(groups, -1)
        low, step = (empty(groups, torch.bfloat16) for _ in range(2))
        return codes, low, step, mixing()

    return run, make_args


def mixing() -> Tensor:
    columns = ROTATED // rules.PIECES
    return empty(2 * columns**2, torch.float32).view(2, columns, columns)


def values(dtype: torch.dtype) -> list[Tensor]:
    return [empty(1, dtype).view(()) for _ in range(2)]


def gate(x: Tensor) -> Tensor:
    return flags.encode_gate(x, 0.0, float("inf"))


CASES = (
    {
        f"{name} {bits} {str(dtype).removeprefix('torch.')}": make(bits, dtype)
        for name, make in (
            *(("quantise", quantise), ("dequantise", dequantise)),
            *(("quantise columns", quantise_columns), ("dequantise columns", dequantise_columns)),
            *(("quantise rotated", quantise_rotated), ("dequantise rotated", dequantise_rotated)),
        )
        for bits in (1, 2, 4, 8)
        for dtype in (torch.float32, torch.bfloat16)
    }
    | {
        f"{name} {str(dtype).removeprefix('torch.')}": case
        for dtype in (torch.bool, torch.float32)
        for name, case in (
            ("pack mask", (flags.encode_flags, lambda dtype=dtype: (empty(ELEMENTS, dtype), *values(dtype)))),
            (
                "unpack mask",
                (flags.decode_flags, lambda dtype=dtype: (empty(ELEMENTS // 8, torch.uint8), *values(dtype))),
            ),
        )
    }
    | {
        f"gate {str(dtype).removeprefix('torch.')}": (gate, lambda dtype=dtype: (empty(ELEMENTS, dtype),))
        for dtype in (torch.float32, torch.bfloat16)
    }
)
