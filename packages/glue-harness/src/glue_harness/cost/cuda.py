"""CUDA's choices of kernels, imposed on CPU tensors, so that its memory can be predicted on any machine.

Three choices decide what a training step keeps on a GPU and not on a CPU: dropout keeps a mask of bools,
attention runs in a fused kernel that keeps a log-sum-exp instead of probabilities, and CUDA's autocast table
runs softmax and norms in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.library import _scoped_library
from torch.overrides import handle_torch_function, has_torch_function_unary

from finetune_common.errors import ConfigurationError

__all__ = [
    "ATTENTION",
    "CONTEXT",
    "GPUS",
    "ROUNDING",
    "WORKSPACE",
    "check_device",
    "cuda_kernels",
    "usable_bytes",
]

MIB = 2**20
CONTEXT = 512 * MIB
"""GPU memory of a CUDA context with the libraries' kernels before the first tensor; 300 to 500 MiB are usual,
and this is the next round number."""
WORKSPACE = 32 * MIB
"""Work space that cuBLAS takes from torch's allocator: its default on Hopper; 8 MiB before."""
ROUNDING = 512
"""The allocator rounds up to multiples of this many bytes."""

GPUS = {"T4": 14.7, "L4": 22.0, "A10": 22.0, "A100-40": 39.4, "H100": 79.1, "H200": 139.7}
"""GPU → GiB that `torch.cuda.mem_get_info` reports, rounded down; error correction takes some."""

ATTENTION = ("eager", "sdpa", "flash")
"""Written out; the kernel that torch would choose; always FlashAttention."""


def usable_bytes(name: str) -> int:
    """Return the bytes of a GPU that tensors may take: all except the context.

    Raises:
        ConfigurationError: No such GPU in `GPUS`.

    Examples:
        >>> round(usable_bytes("T4") / 1e9, 1), round(usable_bytes("h100") / 1e9, 1)
        (15.2, 84.4)
    """
    if name.upper() not in GPUS:
        raise ConfigurationError(f"GPU {name!r}: choose from {', '.join(GPUS)}")
    return int(GPUS[name.upper()] * 2**30) - CONTEXT


def check_device(device: str, by: str, attention: str | None = None) -> None:
    """Refuse a measurement that is impossible here.

    Args:
        device: "cpu" or "cuda".
        by: "prediction" or "measurement".
        attention: One of `ATTENTION`; None for the model's own.

    Raises:
        ConfigurationError: A measurement without the GPU, or with a kernel that torch would not choose;
            FlashAttention on a CPU.
    """
    if by == "measurement" and device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError(
            "--device cuda: torch finds no CUDA device to measure on: predict instead (profile --predict, "
            "capacity --by prediction), or use a machine with a GPU"
        )
    if attention == "flash" and (by, device) != ("prediction", "cuda"):
        raise ConfigurationError(
            "--attention flash can only be predicted, for --device cuda: use sdpa, which lets torch choose"
        )


@contextmanager
def cuda_kernels(attention: str = "sdpa") -> Iterator[None]:
    """Within this context CPU tensors, usually fake, are saved as CUDA would save them.

    It must last until the backward pass ends, since recomputation runs the forward pass again.

    Args:
        attention: Kernel of `scaled_dot_product_attention`: "sdpa" or "flash" (`ATTENTION`). A model whose
            attention is written out does not call it.
    """
    with ExitStack() as stack:
        stack.enter_context(patch.object(F, "dropout", _dropout))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _attention_by(attention)))
        library = stack.enter_context(_scoped_library("aten", "IMPL"))
        for name in autocast_to_float32():
            library.impl(name.removeprefix("aten::"), _in_float32(name), "AutocastCPU")
        yield


def _like(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function look like another, also to hooks on torch functions."""

    def passing(replacement: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def called(first: Tensor, *args: Any, **kwargs: Any) -> Any:
            if has_torch_function_unary(first):
                return handle_torch_function(called, (first,), first, *args, **kwargs)
            return replacement(first, *args, **kwargs)

        return called

    return passing


_dropout_of_cpu, _attention_of_cpu = F.dropout, F.scaled_dot_product_attention


@_like(F.dropout)
def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Drop out as CUDA does: one kernel, which keeps a mask of bools."""
    if inplace or not training or not 0 < p < 1 or not input.numel():
        return _dropout_of_cpu(input, p, training, inplace)
    return torch.native_dropout(input, p, True)[0]


def _attention_by(attention: str) -> Callable[..., Tensor]:
    @_like(F.scaled_dot_product_attention)
    def chosen(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not isinstance(query, FakeTensor):  # as in a trial of a layer: a CPU has no such kernels
            return _attention_of_cpu(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if torch.is_autocast_enabled("cpu"):
            half = torch.get_autocast_dtype("cpu")
            query, key, value = (tensor.to(half) for tensor in (query, key, value))
        width = query.shape[-1]
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        if attention == "flash" and is_half and width > 256:
            raise ConfigurationError(
                f"--attention flash: heads are {width} wide, and its kernels take up to 256: use sdpa"
            )
        if is_half and width <= 256 and (attention == "flash" or attn_mask is None):
            scale = scale or width**-0.5
            query, key, value = (F.pad(t, (0, -width % 8)) for t in (query, key, value))
            outputs = torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, scale=scale
            )
            return outputs[0][..., :width]
        if enable_gqa or width % (16 // query.element_size()):
            outputs = torch.ops.aten._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
            return outputs[0]
        bias = None if attn_mask is None else _bias(attn_mask, query, key)
        needed = any(tensor.requires_grad for tensor in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, needed, dropout_p, is_causal, scale=scale
        )[0]

    return chosen


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return a mask in the memory-efficient kernel's form: numbers, rows padded to a multiple of 16."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
    width = mask.shape[-1]
    mask = F.pad(mask.to(query.dtype), (0, -width % 16))[..., :width]
    return mask.expand(*query.shape[:2], query.shape[2], key.shape[2])


LOWER = ("conv", "rnn", "gru", "lstm", "einsum", "linalg_multi_dot", "chain_matmul", "addmv", "addr", "mv")
"""Parts of names of operations that CUDA's autocast runs in half precision; the CPU's does too, or never sees
them."""
WIDEST = (
    "addcdiv",
    "addcmul",
    "atan2",
    "bilinear",
    "cross",
    "dot",
    "vdot",
    "index_put",
    "scatter_add",
    "tensordot",
)
"""Operations that CUDA's autocast runs in the widest type of their inputs."""


def autocast_to_float32() -> list[str]:
    """Return the operations that CUDA's autocast runs in float32 and the CPU's does not change.

    Torch's dispatcher says which operations each table has.

    Examples:
        >>> {"aten::softmax.int", "aten::layer_norm", "aten::pow.Tensor_Scalar"} <= set(autocast_to_float32())
        True
        >>> "aten::linear" in autocast_to_float32()
        False
    """
    known = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and known(name, "AutocastCUDA")
        and not known(name, "AutocastCPU")
        and not any(part in name for part in LOWER)
        and name.removeprefix("aten::").partition(".")[0] not in WIDEST
        and "flash_attention" not in name
    ]


def _in_float32(name: str) -> Callable[..., Any]:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload or "default")

    def widened(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return operation(*(_wide(value) for value in args), **{k: _wide(v) for k, v in kwargs.items()})

    return widened


def _wide(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    return value
