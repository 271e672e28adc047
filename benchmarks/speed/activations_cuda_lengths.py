"""The kernels of activation compression as they run: into tensors that are there, for any number of groups.

`CASES` as in `activations_cuda_cases.py`; a length is a symbol to the compiler, as in `kernels.call`. A group
that is cut short at the end of a tensor is filled up first. Rotated groups have 64 elements at most unless
--activation.group_size is above 256.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from activation_compression import flag_kernels, kernels
from activation_compression.flags import FLAG_GROUP
from activation_compression.rotation import mixing
from activation_compression.rules import PIECES, WORDS

COLUMNS = 768
ROWS = 256
LARGE = (3, 3, 3, 3)


def empty(*shape: Any, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def name_of(*parts: Any) -> str:
    return " ".join(str(part).removeprefix("torch.") for part in parts if part != "")


def packed(bits: int, size: int, rotated: bool, groups: Any) -> list[Tensor]:
    """Codes, minima and steps of groups of neighbours."""
    words = WORDS[bits] if rotated else torch.uint8
    codes = empty(groups, size * bits // 8 // words.itemsize, dtype=words)
    return [codes, *(empty(groups, dtype=torch.bfloat16) for _ in range(2))]


def mixed(size: int, rotated: bool) -> list[Tensor]:
    return [torch.empty_like(mixing(size), device="cuda")] if rotated else []


def quantise(bits: int, size: int, dtype: torch.dtype, rotated: bool) -> Any:
    def make_args(groups: Any) -> tuple[Tensor, ...]:
        own = packed(bits, size, rotated, groups)
        keys = empty(2, dtype=torch.int32)
        return empty(groups, size, dtype=dtype), *own, keys, *mixed(size, rotated)

    return kernels._encode(bits, size, dtype, rotated, True), make_args


def dequantise(bits: int, size: int, dtype: torch.dtype, rotated: bool) -> Any:
    if rotated:
        turn = kernels._decode_rotated(bits, size, dtype)
        return turn, lambda groups: (*packed(bits, size, True, groups), *mixed(size, True))

    def make_args(groups: Any) -> tuple[Tensor, ...]:
        return *packed(bits, size, False, groups), empty(groups, size, dtype=dtype)

    return kernels._decode(bits, size, dtype), make_args


def columns(bits: int, dtype: torch.dtype, groups: Any) -> list[Tensor]:
    """A block whose groups run across rows, its codes, minima and steps."""
    codes = empty(groups, COLUMNS, ROWS // PIECES, dtype=WORDS[bits])
    numbers = [empty(groups, COLUMNS, dtype=torch.bfloat16) for _ in range(2)]
    return [empty(groups, PIECES, ROWS // PIECES, COLUMNS, dtype=dtype), codes, *numbers]


def quantise_columns(bits: int, dtype: torch.dtype) -> Any:
    make_args = lambda groups: (*columns(bits, dtype, groups), empty(2, dtype=torch.int32))  # noqa: E731
    return kernels._encode_columns(bits, dtype, LARGE, True), make_args


def dequantise_columns(bits: int, dtype: torch.dtype) -> Any:
    return kernels._decode_columns(bits, dtype, LARGE, True), lambda groups: (*columns(bits, dtype, groups),)


def flags(dtype: torch.dtype) -> Any:
    def make_args(groups: Any) -> tuple[Tensor, ...]:
        values = [torch.empty((), dtype=dtype, device="cuda") for _ in range(2)]
        codes = empty(groups, FLAG_GROUP // 8, dtype=torch.uint8)
        return (
            empty(groups, FLAG_GROUP, dtype=dtype),
            *values,
            codes,
            empty(groups, dtype=torch.int32),
        )

    return flag_kernels._flags(dtype), make_args


def unflag(dtype: torch.dtype) -> Any:
    def make_args(groups: Any) -> tuple[Tensor, ...]:
        values = [torch.empty((), dtype=dtype, device="cuda") for _ in range(2)]
        return (
            empty(groups, FLAG_GROUP // 8, dtype=torch.uint8),
            *values,
            empty(groups, FLAG_GROUP, dtype=dtype),
        )

    return flag_kernels._unflag(dtype), make_args


def bits_of(kernel: Any, dtype: torch.dtype, unpack: bool = False) -> Any:
    def make_args(groups: Any) -> tuple[Tensor, ...]:
        x, codes = empty(groups, FLAG_GROUP, dtype=dtype), empty(groups, FLAG_GROUP // 8, dtype=torch.uint8)
        return (codes, x) if unpack else (x, codes)

    return kernel, make_args


DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = [(4, 256, False), (2, 256, False), (8, 256, False), (4, 64, False), (4, 100, False)]
SHAPES += [(1, 96, False), (8, 5, False), (2, 12, False)]
SHAPES += [(bits, size, True) for bits in (2, 4, 8) for size in (32, 64, 128)]
"""Bits, elements of a group, and whether groups are rotated."""

CASES = (
    {
        name_of(kind, bits, "groups of", size, "rotated" if rotated else "", dtype): make(
            bits, size, dtype, rotated
        )
        for kind, make in (("quantise", quantise), ("dequantise", dequantise))
        for bits, size, rotated in SHAPES
        for dtype in DTYPES
    }
    | {
        name_of(kind, bits, dtype): make(bits, dtype)
        for kind, make in (("quantise columns", quantise_columns), ("dequantise columns", dequantise_columns))
        for bits in (2, 4, 8)
        for dtype in DTYPES
    }
    | {
        name_of(kind, dtype): make(dtype)
        for kind, make in (("pack mask", flags), ("unpack mask", unflag))
        for dtype in (*DTYPES, torch.bool)
    }
    | {
        name_of("gate", low, high, dtype): bits_of(flag_kernels._gate(dtype, low, high), dtype)
        for low, high in ((0.0, float("inf")), (-1.0, 1.0))
        for dtype in DTYPES
    }
    | {
        "pack bools": bits_of(flag_kernels._bits(), torch.uint8),
        "unpack bools": bits_of(flag_kernels._unbits(), torch.uint8, unpack=True),
    }
)
