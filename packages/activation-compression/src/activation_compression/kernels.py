"""How the rules run: into tensors that are there, compiled for large ones, never on fake ones.

Large tensors go through `torch.compile`, once for every width and dtype, whatever their length; the rest of a
length that is no multiple of a group, small tensors, and all where no compiler works, run as written. On a
CPU both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from activation_compression import rules
from finetune_common.compiled import Compiled

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
        keys = torch.stack((keys[0] + groups, keys[1]))
        _encode(bits, size, x.dtype).function(rest, *tail, keys)


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
        decode.function(codes[groups * width :], low[groups:], step[groups:], rest)
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
        _flags(x.dtype).function(_filled(x[whole:]), low, high, codes[whole // 8 :], counts)
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
        gate.function(_filled(x[whole:]), codes[whole // 8 :])


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
        _unflag(out.dtype).function(codes[whole // 8 :], low, high, rest)
        out[whole:] = rest[: out.numel() - whole]


def _name(*parts: Any) -> str:
    return "_".join(str(part).removeprefix("torch.") for part in parts)


@cache
def _encode(bits: int, size: int, dtype: torch.dtype) -> Compiled:
    def encode(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor) -> None:
        for target, value in zip((codes, low, step), rules.encode(x, bits, size, keys), strict=True):
            target.copy_(value.view_as(target))

    return _kernel(encode, _name("encode", bits, size, dtype))


@cache
def _decode(bits: int, size: int, dtype: torch.dtype) -> Compiled:
    def decode(codes: Tensor, low: Tensor, step: Tensor, out: Tensor) -> None:
        out.copy_(rules.decode(codes.view(-1), low, step, bits, size, dtype).view_as(out))

    return _kernel(decode, _name("decode", bits, size, dtype))


@cache
def _flags(dtype: torch.dtype) -> Compiled:
    def flags(x: Tensor, low: Tensor, high: Tensor, codes: Tensor, others: Tensor) -> None:
        for target, value in zip((codes, others), rules.encode_flags(x, low, high), strict=True):
            target.copy_(value.view_as(target))

    return _kernel(flags, _name("flags", dtype))


@cache
def _gate(dtype: torch.dtype, low: float, high: float) -> Compiled:
    def gate(x: Tensor, codes: Tensor) -> None:
        codes.copy_(rules.encode_gate(x, low, high).view_as(codes))

    return _kernel(gate, _name("gate", dtype, low, high).replace(".", "_").replace("-", "m"))


@cache
def _unflag(dtype: torch.dtype) -> Compiled:
    def unflag(codes: Tensor, low: Tensor, high: Tensor, out: Tensor) -> None:
        out.copy_(rules.decode_flags(codes, low, high).view_as(out))

    return _kernel(unflag, _name("unflag", dtype))


def _kernel(function: Function, name: str) -> Compiled:
    return Compiled(function, "activation compression", name=name)


def _call(kernel: Compiled, *tensors: Tensor) -> None:
    """Run compiled from `COMPILE_FROM` elements on, for any number of groups: one symbol in all tensors."""
    if max(map(Tensor.numel, tensors)) < COMPILE_FROM or not kernel.usable:
        return kernel.function(*tensors)
    groups = len(tensors[0])
    for tensor in tensors:
        if tensor.ndim and len(tensor) == groups > 2:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
    kernel(*tensors)
