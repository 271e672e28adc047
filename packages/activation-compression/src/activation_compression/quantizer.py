"""Quantise one tensor: groups with a minimum and a step, stochastic rounding, packed codes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from activation_compression import blocks, flag_kernels, kernels
from activation_compression.blocks import Layout, as_block
from activation_compression.flags import FLAG_GROUP
from activation_compression.grouping import Grouping, Neighbours
from activation_compression.keys import keys_of
from activation_compression.levels import WIDTHS
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, check_choice, check_number

__all__ = [
    "Codes",
    "Flags",
    "Quantized",
    "dequantize",
    "fitting",
    "pack_flags",
    "pack_gate",
    "quantize",
]

FLOATING = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that are quantised."""


@dataclass(frozen=True)
class Codes:
    """A quantised block.

    Attributes:
        codes: uint8, one-dimensional.
        low: bfloat16, the minimum of each group, rounded down.
        step: bfloat16, the distance between two codes of each group, rounded up.
        bits: 1, 2, 4 or 8.
        grouping: Which elements form a group.
        count: Elements of the block.
        dtype: The block's dtype.
    """

    codes: Tensor
    low: Tensor
    step: Tensor
    bits: int
    grouping: Grouping
    count: int
    dtype: torch.dtype

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that take memory."""
        return self.codes, self.low, self.step

    @property
    def nbytes(self) -> int:
        """Bytes of codes, minima and steps."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def is_finite(self) -> bool:
        """Whether no group is known to hold NaN or ±∞; not checked if reading a value would wait."""
        step = self.step
        return blocks.reading_waits(step) or kernels.is_fake(step) or not bool(step.isnan().any())

    def with_tensors(self, tensors: list[Tensor]) -> Codes:
        """Return the same codes in other memory."""
        codes, low, step = tensors
        return replace(self, codes=codes, low=low, step=step)

    @classmethod
    def pack(cls, block: Tensor, bits: int, grouping: Grouping | int, keys: Tensor | None) -> Codes:
        """Quantise a block; a fake one needs no keys, and its codes have no values.

        Args:
            block: One-dimensional, floating.
            bits: 1, 2, 4 or 8.
            grouping: Which elements share a minimum and a step; a number means that many neighbours.
            keys: int32, two numbers.
        """
        grouping = Neighbours(grouping) if isinstance(grouping, int) else grouping
        count, groups = grouping.lengths(block.numel(), bits)
        codes = block.new_empty(count, dtype=torch.uint8)
        low, step = (block.new_empty(groups, dtype=torch.bfloat16) for _ in range(2))
        if groups and not kernels.is_fake(block):
            assert keys is not None
            grouping.write(block, codes, low, step, bits, keys)
        return cls(codes, low, step, bits, grouping, block.numel(), block.dtype)

    def unpack(self) -> Tensor:
        """Return the block, each element within one step of the original."""
        if not self.count or kernels.is_fake(self.codes):
            return self.codes.new_empty(self.count, dtype=self.dtype)
        return self.grouping.read(self.count, self.dtype, self.codes, self.low, self.step, self.bits)

    def steps(self) -> Tensor:
        """Return the step of each element's group, in float32."""
        return self.grouping.each(self.step.float(), self.count, self.bits)


@dataclass(frozen=True)
class Flags:
    """A two-valued block in one bit per element, without loss.

    Attributes:
        codes: uint8, one-dimensional.
        low: The value stored as 0.
        high: The value stored as 1.
        count: Elements of the block.
    """

    codes: Tensor
    low: Tensor
    high: Tensor
    count: int
    bits: int = 1

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that take memory."""
        return self.codes, self.low, self.high

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and the two values."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def with_tensors(self, tensors: list[Tensor]) -> Flags:
        """Return the same flags in other memory."""
        codes, low, high = tensors
        return replace(self, codes=codes, low=low, high=high)

    def unpack(self) -> Tensor:
        """Return the block, exactly."""
        block = self.codes.new_empty(self.count, dtype=self.low.dtype)
        if self.count and not kernels.is_fake(block):
            if block.dtype == torch.bool:
                flag_kernels.unbits_into(block, self.codes)
            else:
                flag_kernels.unflag_into(block, self.codes, self.low, self.high)
        return block


def pack_flags(block: Tensor) -> Flags | None:
    """Pack a block with at most two values; None if it has more, or if reading them would wait for a device.

    Bools are packed without reading a value; a fake block counts as two-valued.
    """
    codes = block.new_empty(-(-block.numel() // FLAG_GROUP) * FLAG_GROUP // 8, dtype=torch.uint8)
    if block.dtype == torch.bool:
        if block.numel() and not kernels.is_fake(block):
            flag_kernels.bits_into(block, codes)
        return Flags(codes, *_ends(block, False, True), block.numel())
    if kernels.is_fake(block):
        low, high = block.new_empty(2).unbind()
        return Flags(codes, low, high, block.numel())
    if not block.numel() or blocks.reading_waits(block):
        return None
    low, high = torch.stack(torch.aminmax(block)).unbind()
    others = flag_kernels.flags_into(block, codes, low, high)
    return None if others.item() else Flags(codes, low, high, block.numel())


def pack_gate(block: Tensor, low: float, high: float) -> Flags:
    """Pack whether each element is strictly between two numbers.

    Where it is, unpacking returns a number between them, elsewhere `low`.

    Examples:
        >>> pack_gate(torch.tensor([-1.0, 0.0, 0.2, 7.0]), 0.0, 6.0).unpack()
        tensor([0., 0., 3., 0.])
    """
    codes = block.new_empty(-(-block.numel() // FLAG_GROUP) * FLAG_GROUP // 8, dtype=torch.uint8)
    if block.numel() and not kernels.is_fake(block):
        flag_kernels.gate_into(block, codes, low, high)
    outside, inside = _ends(block, low, low + 1 if math.isinf(high) else (low + high) / 2)
    return Flags(codes, outside, inside, block.numel())


def _ends(block: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return two numbers as tensors; made once for each device, since copying them waits for it."""
    make = _new_ends if kernels.is_fake(block) else _cached_ends
    return make(low, high, block.dtype, block.device)


def _new_ends(low: float, high: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = torch.tensor([low, high], dtype=dtype, device=device).unbind()
    return first.clone(), second.clone()  # kernels are called faster on tensors that share no memory


_cached_ends = cache(_new_ends)


@dataclass(frozen=True)
class Quantized:
    """A quantised tensor.

    Attributes:
        content: Its codes; the tensor itself if its width is above 8 bits or it is not floating.
        layout: Where the tensor's elements are in the block.
    """

    content: Codes | Flags | Tensor
    layout: Layout

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return self.content.nbytes


@explain_arguments
def quantize(x: Tensor, bits: int = 4, group_size: int = 256, seed: int = 0) -> Quantized:
    """Quantise a tensor with stochastic rounding, so that E[dequantize(quantize(x))] = x.

        m = ⌊min x⌋    s = ⌈(max x - m) / (2ᵇ - 1)⌉    q = ⌊(x - m) / s + u⌋,  u ~ U[0, 1)

    for every group of neighbours in memory; m and s are bfloat16. If |x| is much larger than the range of its
    group, steps are as coarse as bfloat16 near |x|. A group with NaN or ±∞ is dequantised as NaN.

    Args:
        x: Any shape and strides. float32, bfloat16 and float16 are quantised; bool takes 1 bit exactly;
            other dtypes are kept unchanged.
        bits: 1, 2, 4 or 8; more (up to 64) keeps the tensor unchanged.
        group_size: Elements that share m and s, at least 1.
        seed: Seed of the random numbers, a hash of (seed, position) that uses no random stream.

    Returns:
        Codes, minima and steps: bits + 32 / group_size bits per element.

    Raises:
        ConfigurationError: A width or a group size that is not allowed; a sparse tensor.

    Source: Liu et al. 2022 (arXiv 2206.11357), section 4; the released code clamps, with m and s in float32.

    Examples:
        >>> x = torch.linspace(-1, 1, 512).view(2, 256)
        >>> q = quantize(x, bits=4)
        >>> q.nbytes, dequantize(q).shape, bool((dequantize(q) - x).abs().max() < 2 / 15)
        (264, torch.Size([2, 256]), True)
    """
    check_number("bits", bits, at_least=1, at_most=64)
    check_number("group_size", group_size, at_least=1)
    if bits <= 8:
        check_choice("bits", bits, WIDTHS)
    if x.layout != torch.strided:
        raise ConfigurationError(f"a tensor of layout {x.layout} cannot be quantised: pass x.to_dense()")
    x = x.detach()
    with torch.no_grad():
        if x.dtype == torch.bool:
            block, layout, _ = as_block(x)
            flags = pack_flags(block)
            assert flags is not None
            return Quantized(flags, layout)
        if bits > 8 or x.dtype not in FLOATING:
            return Quantized(x, Layout(tuple(x.shape), tuple(x.shape), x.stride()))
        block, layout, _ = as_block(x)
        return Quantized(Codes.pack(block, bits, group_size, keys_of(seed, 0, 1, x.device)[0]), layout)


@explain_arguments
def dequantize(q: Quantized) -> Tensor:
    """Return the values of a quantised tensor, with the original's shape, dtype and device.

    Each element is m + q·s just below or just above the original, or equal to it.

    Args:
        q: From `quantize`.

    Examples:
        >>> mask = torch.tensor([True, False, True])
        >>> dequantize(quantize(mask)).equal(mask)
        True
    """
    if isinstance(q.content, Tensor):
        return q.content
    with torch.no_grad():
        return q.layout.view(q.content.unpack())


def fitting(bound: int, dtype: torch.dtype) -> torch.dtype | None:
    """Return the narrowest integer dtype for numbers below a bound; None if none is narrower than `dtype`."""
    narrow = (torch.uint8, torch.int16, torch.int32)
    return next((d for d in narrow if bound <= torch.iinfo(d).max and d.itemsize < dtype.itemsize), None)
