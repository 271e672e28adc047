"""More kernels of activation compression for the tool that lowers to CUDA: other dtypes, groups and lengths.

`CASES` as in `activations_cuda_cases.py`. "any length" has a symbol for the number of groups, as compiled
calls have; a short last group is filled up before it is packed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from activation_compression import rules

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


def any_length(case: Any) -> Any:
    """Return a case whose first axis, equal in all large tensors, is a symbol."""
    run, make_args = case

    def symbolic() -> tuple[Tensor, ...]:
        mode = detect_fake_mode()
        assert mode is not None
        mode.shape_env, mode.static_shapes = ShapeEnv(), False
        found = []
        for number, tensor in enumerate(make_args()):
            large = tensor.ndim > 0 and len(tensor) > 2
            sizes = [
                DimDynamic.DUCK if large and not axis else DimDynamic.STATIC for axis in range(tensor.ndim)
            ]
            with torch._subclasses.fake_tensor.unset_fake_temporarily():
                meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            context = StatelessSymbolicContext(dynamic_sizes=sizes)
            source = torch._dynamo.source.ConstantSource(f"x{number}")
            symbols = mode.from_tensor(meta, symbolic_context=context, source=source)
            found.append(torch.empty(symbols.shape, dtype=tensor.dtype, device="cuda"))
        return tuple(found)

    return run, symbolic


def gate(low: float, high: float) -> Callable[[Tensor], Tensor]:
    return lambda x: rules.encode_gate(x, low, high)


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
        name_of(kind, bits, "any length", dtype): any_length(make(bits, 256, dtype))
        for kind, make in (("quantise", quantise), ("dequantise", dequantise))
        for bits in (2, 4)
        for dtype in (torch.float32, torch.bfloat16)
    }
    | {
        name_of("pack mask", dtype): (
            rules.encode_flags,
            lambda dtype=dtype: (empty(MASK, dtype=dtype), *values(dtype)),
        )
        for dtype in HALVES
    }
    | {
        name_of("unpack mask", dtype): (
            rules.decode_flags,
            lambda dtype=dtype: (empty(MASK // 8, dtype=torch.uint8), *values(dtype)),
        )
        for dtype in HALVES
    }
    | {
        name_of("gate", low, high, dtype): (gate(low, high), lambda dtype=dtype: (empty(MASK, dtype=dtype),))
        for low, high in ((0.0, float("inf")), (-1.0, 1.0))
        for dtype in (torch.float16, torch.bool)
    }
)
