"""How the quantiser of `rules` runs: it writes into given tensors, and is compiled for large ones.

`torch.compile` compiles it once for each width and dtype, for all lengths. Small tensors, the last group of a
length that is no multiple of the group size, and all tensors where no compiler works, run uncompiled. On a
CPU both give the same bits. Fake tensors never get here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from activation_compression import rotation, rules
from finetune_common.compiled import Compiled, DirectByShape

__all__ = [
    "call",
    "dequantize_columns_into",
    "dequantize_into",
    "dequantize_rotated",
    "filled",
    "is_fake",
    "kernel_of",
    "name_of",
    "on_gpu",
    "quantize_columns_into",
    "quantize_into",
]

COMPILE_FROM = 2**16
"""Smallest number of elements for which a compiled call is faster."""
WHAT = "activation compression"
"""The name of these kernels in warnings."""


def is_fake(tensor: Tensor) -> bool:
    """Return whether a tensor has a shape but no values."""
    return isinstance(tensor, FakeTensor)


def quantize_into(
    x: Tensor,
    codes: Tensor,
    low: Tensor,
    step: Tensor,
    bits: int,
    size: int,
    keys: Tensor,
    mix: Tensor | None = None,
) -> None:
    """Write `rules.encode` of a one-dimensional tensor; its last group is filled up.

    Args:
        x: One-dimensional, floating.
        codes: uint8, receives ⌈n / size⌉·size·bits / 8 bytes.
        low: bfloat16, receives a number for each group.
        step: bfloat16, receives a number for each group.
        bits: 1, 2, 4 or 8.
        size: Elements of a group, a multiple of 8 / bits.
        keys: int32, two numbers.
        mix: `rotation.mixing(size)`, to rotate groups first.
    """
    groups = x.numel() // size
    whole, width = groups * size, size * bits // 8
    more = () if mix is None else (mix,)
    words = torch.uint8 if mix is None else rules.WORDS[bits]
    encode = _encode(bits, size, x.dtype, bool(more), on_gpu(x.device))
    if whole:
        rows = x[:whole].view(groups, size), codes[: groups * width].view(words).view(groups, -1)
        call(encode, *rows, low[:groups], step[:groups], keys, *more)
    if whole < x.numel():
        rest = filled(x[whole:], size - (x.numel() - whole), bool(more)).view(1, size)
        tail = codes[groups * width :].view(words).view(1, -1), low[groups:], step[groups:]
        keys = torch.stack((keys[0] + groups, keys[1]))
        encode.function(rest, *tail, keys, *more)


def filled(x: Tensor, missing: int, rotated: bool) -> Tensor:
    """Return the last group, filled up with zeros if it will be rotated, otherwise with its last element."""
    if not missing:
        return x
    return torch.cat([x, x.new_zeros(missing) if rotated else x[-1:].expand(missing)])


def dequantize_into(out: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int) -> None:
    """Write `rules.decode` into a one-dimensional tensor; arguments as for `quantize_into`."""
    groups = out.numel() // size
    whole, width = groups * size, size * bits // 8
    decode = _decode(bits, size, out.dtype)
    if whole:
        rows = codes[: groups * width].view(groups, width), low[:groups], step[:groups]
        call(decode, *rows, out[:whole].view(groups, size))
    if whole < out.numel():
        rest = out.new_empty(1, size)
        decode.function(codes[groups * width :].view(1, width), low[groups:], step[groups:], rest)
        out[whole:] = rest.view(-1)[: out.numel() - whole]


def dequantize_rotated(
    codes: Tensor, low: Tensor, step: Tensor, bits: int, size: int, dtype: torch.dtype, mix: Tensor
) -> Tensor:
    """Return `rotation.decode` of whole groups, one-dimensional; arguments as for `quantize_into`.

    It returns a new tensor: writing into a given one would copy the parts of a group once more.
    """
    rows = _without_bases(codes.view(rules.WORDS[bits]).view(len(low), -1), low, step)
    decode = _decode_rotated(bits, size, dtype)
    if len(low) * size < COMPILE_FROM:
        return decode.function(*rows, mix).view(-1)
    if decode.usable:
        _any_number(*rows)
    return decode(*rows, mix).view(-1)


def on_gpu(device: torch.device) -> bool:
    """Return whether kernels take their form for GPUs; see also `rules.encode_columns`."""
    return device.type != "cpu"


def quantize_columns_into(
    x: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int, keys: Tensor
) -> None:
    """Write `rules.encode_columns`; arguments and results have its shapes."""
    _call_columns(_encode_columns(bits, x.dtype, _small(x), on_gpu(x.device)), x, codes, low, step, keys)


def dequantize_columns_into(out: Tensor, codes: Tensor, low: Tensor, step: Tensor, bits: int) -> None:
    """Write `rules.decode_columns`; arguments and result have its shapes."""
    kernel = _decode_columns(bits, out.dtype, _small(out), on_gpu(out.device))
    _call_columns(kernel, out, codes, low, step)


def _small(x: Tensor) -> tuple[int, ...]:
    """Return a block's sizes below 3, and 3 for all others.

    Torch compiles sizes below 3 in. Each such block has a kernel of its own, since torch makes no function
    anew more than eight times.
    """
    return tuple(min(size, 3) for size in x.shape)


def name_of(*parts: object) -> str:
    """Return a kernel's name for torch's logs."""
    return "_".join(str(part).removeprefix("torch.") for part in parts)


def _copied(targets: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value.view_as(target))


@cache
def _encode(bits: int, size: int, dtype: torch.dtype, rotated: bool, gpu: bool) -> DirectByShape:
    def encode(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor) -> None:
        _copied((codes, low, step), rules.encode(x, bits, size, keys))

    def turn(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor, mix: Tensor) -> None:
        _copied((codes, low, step), rotation.encode(x, bits, size, keys, mix))

    # Otherwise a GPU's compiler computes the range of small groups in a pass of its own over memory.
    options: dict[str, object] = {"unroll_reductions_threshold": 1} if gpu else {}
    return kernel_of(turn if rotated else encode, name_of("encode", bits, size, dtype), options)


@cache
def _decode(bits: int, size: int, dtype: torch.dtype) -> DirectByShape:
    def decode(codes: Tensor, low: Tensor, step: Tensor, out: Tensor) -> None:
        out.copy_(rules.decode(codes.view(-1), low, step, bits, size, dtype).view_as(out))

    return kernel_of(decode, name_of("decode", bits, size, dtype))


@cache
def _decode_rotated(bits: int, size: int, dtype: torch.dtype) -> Compiled:
    def turn(codes: Tensor, low: Tensor, step: Tensor, mix: Tensor) -> Tensor:
        return rotation.decode(codes, low, step, bits, dtype, mix)

    # A GPU's compiler joins only nodes that are at most 64 apart: so each sum has to be one node.
    options: dict[str, object] = {"realize_acc_reads_threshold": size, "realize_opcount_threshold": 4 * size}
    return Compiled(turn, WHAT, name=name_of("decode_rotated", bits, size, dtype), options=options)


@cache
def _encode_columns(bits: int, dtype: torch.dtype, small: tuple[int, ...], first: bool) -> DirectByShape:
    def encode(x: Tensor, codes: Tensor, low: Tensor, step: Tensor, keys: Tensor) -> None:
        _copied((codes, low, step), rules.encode_columns(x, bits, keys, first))

    return kernel_of(encode, name_of("encode_columns", bits, dtype, *small))


@cache
def _decode_columns(bits: int, dtype: torch.dtype, small: tuple[int, ...], first: bool) -> DirectByShape:
    def decode(out: Tensor, codes: Tensor, low: Tensor, step: Tensor) -> None:
        out.copy_(rules.decode_columns(codes, low, step, bits, dtype, first))

    return kernel_of(decode, name_of("decode_columns", bits, dtype, *small))


def kernel_of(
    function: Callable[..., None], name: str, options: dict[str, object] | None = None
) -> DirectByShape:
    """Return a kernel that runs a function, which writes into its arguments; options are inductor's."""
    return DirectByShape(function, WHAT, name, options)


def call(kernel: DirectByShape, *tensors: Tensor) -> None:
    """Run a kernel, compiled from `COMPILE_FROM` elements on, for any number of groups.

    The number of groups is the first length of the tensors that have it.
    """
    if max(map(Tensor.numel, tensors)) < COMPILE_FROM or not kernel.usable:
        kernel.function(*tensors)
        return
    if kernel.enters(*tensors):
        return
    tensors = _without_bases(*tensors)
    _any_number(*tensors)
    kernel(*tensors)


def _without_bases(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors that are no views, on the same memory: code for views is made anew for other bases."""
    return tuple(tensor.data for tensor in tensors)


def _any_number(*tensors: Tensor) -> None:
    """Tell the compiler that the number of groups varies."""
    from torch._dynamo import maybe_mark_dynamic  # importing the compiler takes seconds

    groups = len(tensors[0])
    for tensor in tensors:
        if tensor.ndim and len(tensor) == groups > 2:
            maybe_mark_dynamic(tensor, 0)


def _call_columns(kernel: DirectByShape, x: Tensor, *tensors: Tensor) -> None:
    """Run a kernel, compiled from `COMPILE_FROM` elements on, for any number of groups and columns.

    Also for any number of rows on a CPU, so that no other shape is compiled. On a GPU the first number is a
    constant, so that it holds a group in registers; when another comes, any number.
    """
    if x.numel() < COMPILE_FROM or not kernel.usable:
        kernel.function(x, *tensors)
        return
    if kernel.enters(x, *tensors):
        return
    given = _without_bases(x, *tensors)
    from torch._dynamo import maybe_mark_dynamic

    varying = ((0, 3), (0, 1)) if on_gpu(x.device) else ((0, 2, 3), (0, 1, 2))
    for tensor, axes in zip(given, (*varying, (0, 1), (0, 1)), strict=False):  # keys do not vary
        for axis in axes:
            if tensor.shape[axis] > 2:
                maybe_mark_dynamic(tensor, axis)
    kernel(*given)
