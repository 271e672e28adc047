"""How the rules run: into tensors that are there, compiled for large ones, never on fake ones.

Large tensors go through `torch.compile`, once for every width and dtype, whatever their length; the rest of a
length that is no multiple of a group, small tensors, and all where no compiler works, run as written. On a
CPU both give the same bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from activation_compression import rules

__all__ = ["dequantize_into", "flags_into", "gate_into", "is_fake", "quantize_into", "unflag_into"]

COMPILE_FROM = 2**16
"""Elements from which a compiled call pays for itself."""

Function = Callable[..., Any]


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor has a shape and no values."""
    return isinstance(tensor, FakeTensor)


def quantize_into(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int, keys: Tensor):
    """Write `rules.encode` of a one-dimensional tensor; its last group is filled up with its last element.

    Args:
        x: One-dimensional, floating.
        codes: uint8, receives ⌈n / size⌉·size·bits / 8 bytes.
        low: bfloat16, receives a number a group.
        step: bfloat16, receives a number a group.
        bits: 1, 2, 4 or 8.
        size: Elements of a group, a multiple of 8 / bits.
        keys: int32, two numbers.
    """
    groups = x.numel() // size
    whole, width = groups * size, size * bits // 8
    if whole:
        rows = x[:whole].view(groups, size), codes[: groups * width].view(groups, width)
        _call(_encode(bits, size, x.dtype), *rows, low[:groups], step[:groups], keys)
    if whole < x.numel():
        rest = torch.cat([x[whole:], x[-1:].expand(size - (x.numel() - whole))])
        tail = codes[groups * width :], low[groups:], step[groups:]
        keys = keys + keys.new_tensor([groups, 0])
        _encode(bits, size, x.dtype).eager(rest, *tail, keys)


def dequantize_into(out: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int) -> None:
    """Write `rules.decode` into a one-dimensional tensor; arguments as for `quantize_into`."""
    groups = out.numel() // size
    whole, width = groups * size, size * bits // 8
    decode = _decode(bits, size, out.dtype)
    if whole:
        rows = codes[: groups * width].view(groups, width), low[:groups], step[:groups]
        _call(decode, *rows, out[:whole].view(groups, size))
    if whole < out.numel():
        rest = out.new_empty(size)
        decode.eager(codes[groups * width :], low[groups:], step[groups:], rest)
        out[whole:] = rest[: out.numel() - whole]


def _filled(rest: Tensor) -> Tensor:
    """Return a last group of flags that is short, filled with its last value."""
    return torch.cat([rest, rest[-1:].expand(rules.FLAG_GROUP - len(rest))])


def flags_into(x: Tensor, codes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Write `rules.encode_flags`; returns how many elements are neither of the two values (one number)."""
    size = rules.FLAG_GROUP
    groups = x.numel() // size
    whole = groups * size
    others = torch.zeros((), dtype=torch.int64, device=x.device)
    if whole:
        counts = torch.empty(groups, dtype=torch.int32, device=x.device)
        _call(
            _flags(x.dtype),
            x[:whole].view(groups, size),
            low,
            high,
            codes[: whole // 8].view(groups, -1),
            counts,
        )
        others += counts.sum()
    if whole < x.numel():
        counts = torch.empty(1, dtype=torch.int32, device=x.device)
        _flags(x.dtype).eager(_filled(x[whole:]), low, high, codes[whole // 8 :], counts)
        others += counts.sum()
    return others


def gate_into(x: Tensor, codes: Tensor, low: float, high: float) -> None:
    """Write `rules.encode_gate` of a one-dimensional tensor."""
    size = rules.FLAG_GROUP
    groups = x.numel() // size
    whole = groups * size
    gate = _gate(x.dtype, low, high)
    if whole:
        _call(gate, x[:whole].view(groups, size), codes[: whole // 8].view(groups, -1))
    if whole < x.numel():
        gate.eager(_filled(x[whole:]), codes[whole // 8 :])


def unflag_into(out: Tensor, codes: Tensor, low: Tensor, high: Tensor) -> None:
    """Write `rules.decode_flags` into a one-dimensional tensor."""
    size = rules.FLAG_GROUP
    groups = out.numel() // size
    whole = groups * size
    if whole:
        _call(
            _unflag(out.dtype),
            codes[: whole // 8].view(groups, -1),
            low,
            high,
            out[:whole].view(groups, size),
        )
    if whole < out.numel():
        rest = out.new_empty(size)
        _unflag(out.dtype).eager(codes[whole // 8 :], low, high, rest)
        out[whole:] = rest[: out.numel() - whole]


class _Kernel:
    """A function in two forms. Each has a code object of its own: torch counts recompilations by it."""

    def __init__(self, function: FunctionType, name: str) -> None:
        code = function.__code__.replace(co_name=name)
        self.eager: Function = function
        own = FunctionType(code, function.__globals__, name, None, function.__closure__)
        self.compiled: Function = torch.compile(own, fullgraph=True)

    def __call__(self, *tensors: Tensor) -> None:
        """Run compiled, for any number of groups; it is one symbol in all tensors, so that loops join."""
        groups = len(tensors[0])
        for tensor in tensors:
            if tensor.ndim and len(tensor) == groups > 2:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        self.compiled(*tensors)


def _name(*parts: Any) -> str:
    return "_".join(str(part).removeprefix("torch.") for part in parts)


@cache
def _encode(bits: int, size: int, dtype: torch.dtype) -> _Kernel:
    def encode(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor) -> None:
        for target, value in zip((codes, low, step), rules.encode(x, bits, size, keys), strict=True):
            target.copy_(value.view_as(target))

    return _Kernel(encode, _name("encode", bits, size, dtype))  # type: ignore[arg-type]


@cache
def _decode(bits: int, size: int, dtype: torch.dtype) -> _Kernel:
    def decode(codes: Tensor, low: Tensor, step: Tensor, out: Tensor) -> None:
        out.copy_(rules.decode(codes.view(-1), low, step, bits, size, dtype).view_as(out))

    return _Kernel(decode, _name("decode", bits, size, dtype))  # type: ignore[arg-type]


@cache
def _flags(dtype: torch.dtype) -> _Kernel:
    def flags(x: Tensor, low: Tensor, high: Tensor, codes: Tensor, others: Tensor) -> None:
        for target, value in zip((codes, others), rules.encode_flags(x, low, high), strict=True):
            target.copy_(value.view_as(target))

    return _Kernel(flags, _name("flags", dtype))  # type: ignore[arg-type]


@cache
def _gate(dtype: torch.dtype, low: float, high: float) -> _Kernel:
    def gate(x: Tensor, codes: Tensor) -> None:
        codes.copy_(rules.encode_gate(x, low, high).view_as(codes))

    return _Kernel(gate, _name("gate", dtype, low, high).replace(".", "_").replace("-", "m"))  # type: ignore[arg-type]


@cache
def _unflag(dtype: torch.dtype) -> _Kernel:
    def unflag(codes: Tensor, low: Tensor, high: Tensor, out: Tensor) -> None:
        out.copy_(rules.decode_flags(codes, low, high).view_as(out))

    return _Kernel(unflag, _name("unflag", dtype))  # type: ignore[arg-type]


_compiler_works = True
_COMPILER_ERRORS = ("torch._inductor", "torch._dynamo")


def _call(kernel: _Kernel, *tensors: Tensor) -> None:
    global _compiler_works
    large = max(map(Tensor.numel, tensors)) >= COMPILE_FROM
    if _compiler_works and large and not torch._C._len_torch_dispatch_stack():  # modes see no compiled code
        try:
            with torch.autocast(tensors[0].device.type, enabled=False):
                return kernel(*tensors)
        except RuntimeError as error:
            if not type(error).__module__.startswith(_COMPILER_ERRORS):
                raise
            _compiler_works = False
            warnings.warn(
                "no working compiler: activation compression runs several times slower; install a C++ "
                f"compiler (CPU) or triton (CUDA) ({type(error).__name__})",
                RuntimeWarning,
                stacklevel=2,
            )
    kernel.eager(*tensors)
