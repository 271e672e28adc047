"""How the rules of `flags` run: writing into given tensors, compiled for large ones (see `kernels`)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from activation_compression.flags import (
    FLAG_GROUP,
    decode_bits,
    decode_flags,
    encode_bits,
    encode_flags,
    encode_gate,
)
from activation_compression.kernels import call, kernel_of, name_of
from finetune_common.compiled import DirectByShape

__all__ = ["bits_into", "flags_into", "gate_into", "unbits_into", "unflag_into"]


def flags_into(x: Tensor, codes: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Write `flags.encode_flags`; return how many elements are neither of the two values, as one number."""
    groups, full = _full_groups(x)
    others = torch.zeros((), dtype=torch.int64, device=x.device)
    if full:
        counts = torch.empty(groups, dtype=torch.int32, device=x.device)
        rows = x[:full].view(groups, FLAG_GROUP)
        call(_flags(x.dtype), rows, low, high, codes[: full // 8].view(groups, -1), counts)
        others += counts.sum()
    if full < x.numel():
        counts = torch.empty(1, dtype=torch.int32, device=x.device)
        _flags(x.dtype).function(_filled(x[full:]), low, high, codes[full // 8 :], counts)
        others += counts.sum()
    return others


def gate_into(x: Tensor, codes: Tensor, low: float, high: float) -> None:
    """Write `flags.encode_gate` of a one-dimensional tensor."""
    _pack(_gate(x.dtype, low, high), x, codes)


def bits_into(x: Tensor, codes: Tensor) -> None:
    """Write `flags.encode_bits` of a one-dimensional tensor of bools."""
    _pack(_bits(), x.view(torch.uint8), codes)


def _pack(kernel: DirectByShape, x: Tensor, codes: Tensor) -> None:
    groups, full = _full_groups(x)
    if full:
        call(kernel, x[:full].view(groups, FLAG_GROUP), codes[: full // 8].view(groups, -1))
    if full < x.numel():
        kernel.function(_filled(x[full:]), codes[full // 8 :])


def unflag_into(out: Tensor, codes: Tensor, low: Tensor, high: Tensor) -> None:
    """Write `flags.decode_flags` into a one-dimensional tensor."""
    _unpack(_unflag(out.dtype), out, codes, low, high)


def unbits_into(out: Tensor, codes: Tensor) -> None:
    """Write `flags.decode_bits` into a one-dimensional tensor of bools."""
    _unpack(_unbits(), out.view(torch.uint8), codes)


def _unpack(kernel: DirectByShape, out: Tensor, codes: Tensor, *values: Tensor) -> None:
    groups, full = _full_groups(out)
    if full:
        rows = out[:full].view(groups, FLAG_GROUP)
        call(kernel, codes[: full // 8].view(groups, -1), *values, rows)
    if full < out.numel():
        rest = out.new_empty(FLAG_GROUP)
        kernel.function(codes[full // 8 :], *values, rest)
        out[full:] = rest[: out.numel() - full]


def _full_groups(x: Tensor) -> tuple[int, int]:
    """Return the number of whole groups of a tensor, and of their elements."""
    groups = x.numel() // FLAG_GROUP
    return groups, groups * FLAG_GROUP


def _filled(rest: Tensor) -> Tensor:
    """Return the last group, filled up with its last value."""
    return torch.cat([rest, rest[-1:].expand(FLAG_GROUP - len(rest))])


@cache
def _flags(dtype: torch.dtype) -> DirectByShape:
    def flags(x: Tensor, low: Tensor, high: Tensor, codes: Tensor, others: Tensor) -> None:
        for target, value in zip((codes, others), encode_flags(x, low, high), strict=True):
            target.copy_(value.view_as(target))

    return kernel_of(flags, name_of("flags", dtype))


@cache
def _gate(dtype: torch.dtype, low: float, high: float) -> DirectByShape:
    def gate(x: Tensor, codes: Tensor) -> None:
        codes.copy_(encode_gate(x, low, high).view_as(codes))

    return kernel_of(gate, name_of("gate", dtype, low, high).replace(".", "_").replace("-", "m"))


@cache
def _bits() -> DirectByShape:
    def bits(x: Tensor, codes: Tensor) -> None:
        codes.copy_(encode_bits(x).view_as(codes))

    return kernel_of(bits, "bits")


@cache
def _unflag(dtype: torch.dtype) -> DirectByShape:
    def unflag(codes: Tensor, low: Tensor, high: Tensor, out: Tensor) -> None:
        out.copy_(decode_flags(codes, low, high).view_as(out))

    return kernel_of(unflag, name_of("unflag", dtype))


@cache
def _unbits() -> DirectByShape:
    def unbits(codes: Tensor, out: Tensor) -> None:
        out.copy_(decode_bits(codes).view_as(out))

    return kernel_of(unbits, "unbits")
