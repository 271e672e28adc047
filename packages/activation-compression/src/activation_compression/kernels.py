"""How the rules run: into tensors that are there, compiled for large ones, never on fake ones.

Large tensors go through `torch.compile`, once for every width and dtype, whatever their length; the rest of a
length that is no multiple of a group, small tensors, and all where no compiler works, run as written. On a
CPU both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from activation_compression import rotation, rules
from finetune_common.compiled import Compiled

__all__ = [
    "columns_first",
    "dequantize_columns_into",
    "dequantize_into",
    "filled",
    "flags_into",
    "gate_into",
    "is_fake",
    "quantize_columns_into",
    "quantize_into",
    "unflag_into",
]

COMPILE_FROM = 2**16
"""Elements from which a compiled call pays for itself."""

Function = Callable[..., Any]


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor has a shape and no values."""
    return isinstance(tensor, FakeTensor)


def quantize_into(
    x: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int, keys: Tensor, mix: Any = None
):
    """Write `rules.encode` of a one-dimensional tensor; its last group is filled up.

    Args:
        x: One-dimensional, floating.
        codes: uint8, receives ⌈n / size⌉·size·bits / 8 bytes.
        low: bfloat16, receives a number a group.
        step: bfloat16, receives a number a group.
        bits: 1, 2, 4 or 8.
        size: Elements of a group, a multiple of 8 / bits.
        keys: int32, two numbers.
        mix: `rotation.mixing(size)`: groups are rotated first.
    """
    groups = x.numel() // size
    whole, width = groups * size, size * bits // 8
    more = () if mix is None else (mix,)
    words = torch.uint8 if mix is None else rules.WORDS[bits]
    encode = _encode(bits, size, x.dtype, bool(more))
    if whole:
        rows = x[:whole].view(groups, size), codes[: groups * width].view(words).view(groups, -1)
        _call(encode, *rows, low[:groups], step[:groups], keys, *more)
    if whole < x.numel():
        rest = filled(x[whole:], size - (x.numel() - whole), bool(more)).view(1, size)
        tail = codes[groups * width :].view(words).view(1, -1), low[groups:], step[groups:]
        keys = torch.stack((keys[0] + groups, keys[1]))
        encode.function(rest, *tail, keys, *more)


def filled(x: Tensor, missing: int, rotated: bool) -> Tensor:
    """Return a last group that is filled up: with its last element, with zeros where all would be mixed."""
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(missing) if rotated else x[-1:].expand(missing)])


def dequantize_into(
    out: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int, mix: Any = None
) -> None:
    """Write `rules.decode` into a one-dimensional tensor; arguments as for `quantize_into`."""
    groups = out.numel() // size
    whole, width = groups * size, size * bits // 8
    more = () if mix is None else (mix,)
    words = torch.uint8 if mix is None else rules.WORDS[bits]
    decode = _decode(bits, size, out.dtype, bool(more))
    if whole:
        rows = codes[: groups * width].view(words).view(groups, -1), low[:groups], step[:groups]
        _call(decode, *rows, out[:whole].view(groups, size), *more)
    if whole < out.numel():
        rest = out.new_empty(1, size)
        last = codes[groups * width :].view(words).view(1, -1)
        decode.function(last, low[groups:], step[groups:], rest, *more)
        out[whole:] = rest.view(-1)[: out.numel() - whole]


def columns_first(device: torch.device) -> bool:
    """Return whether codes of columns lie as `rules.encode_columns` has them on a GPU."""
    return device.type != "cpu"


def quantize_columns_into(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, keys: Tensor):
    """Write `rules.encode_columns`; arguments and results have its shapes."""
    _call_columns(_encode_columns(bits, columns_first(x.device)), x, codes, low, step, keys)


def dequantize_columns_into(out: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int) -> None:
    """Write `rules.decode_columns`; arguments and result have its shapes."""
    _call_columns(_decode_columns(bits, columns_first(out.device)), out, codes, low, step)


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
    if out.dtype == torch.bool:  # the compiler's stores of bool are ten times as slow
        out, low, high = (tensor.view(torch.uint8) for tensor in (out, low, high))
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


def _copied(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value.view_as(target))


@cache
def _encode(bits: int, size: int, dtype: torch.dtype, rotated: bool) -> Compiled:
    def encode(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor) -> None:
        _copied((codes, low, step), rules.encode(x, bits, size, keys))

    def turn(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor, mix: Tensor) -> None:
        _copied((codes, low, step), rotation.encode(x, bits, size, keys, mix))

    return _kernel(turn if rotated else encode, _name("encode", bits, size, dtype))


@cache
def _decode(bits: int, size: int, dtype: torch.dtype, rotated: bool) -> Compiled:
    def decode(codes: Tensor, low: Tensor, step: Tensor, out: Tensor) -> None:
        out.copy_(rules.decode(codes.view(-1), low, step, bits, size, dtype).view_as(out))

    def turn(codes: Tensor, low: Tensor, step: Tensor, out: Tensor, mix: Tensor) -> None:
        out.copy_(rotation.decode(codes, low, step, bits, dtype, mix).view_as(out))

    return _kernel(turn if rotated else decode, _name("decode", bits, size, dtype))


@cache
def _encode_columns(bits: int, first: bool) -> Compiled:
    def encode(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor) -> None:
        _copied((codes, low, step), rules.encode_columns(x, bits, keys, first))

    return _kernel(encode, _name("encode_columns", bits))


@cache
def _decode_columns(bits: int, first: bool) -> Compiled:
    def decode(out: Tensor, codes: Tensor, low: Tensor, step: Tensor) -> None:
        out.copy_(rules.decode_columns(codes, low, step, bits, out.dtype, first))

    return _kernel(decode, _name("decode_columns", bits))


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


def _call_columns(kernel: Compiled, x: Tensor, codes: Tensor, *tensors: Tensor) -> None:
    """Run compiled from `COMPILE_FROM` elements on, for any number of groups and columns.

    The rows of a group stay a number as long as one suffices: a GPU then holds a group in registers.
    """
    if x.numel() < COMPILE_FROM or not kernel.usable:
        return kernel.function(x, codes, *tensors)
    for tensor, axes in ((x, (0, 3)), (codes, (0, 1 if columns_first(x.device) else 2))):
        for axis in axes:
            if tensor.shape[axis] > 2:
                torch._dynamo.maybe_mark_dynamic(tensor, axis)
    kernel(x, codes, *tensors)
