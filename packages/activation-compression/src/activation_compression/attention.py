"""Fused attention: its output and log-sum-exp are computed again from the q, k and v that backward reads.

    P = exp(scale · q kᵀ + mask - ℓ),   ℓ = log Σ_j exp(scale · q·k_j + mask_j),   o = P v
    ∂L/∂S = P ∘ (∂L/∂P - D),   D = rowsum(∂L/∂o ∘ o)

With rounded q and k and the ℓ of the exact ones, probabilities would not sum to one: if scores spread widely,
the sum is too large by orders of magnitude. With rounded v and the exact o, ∂L/∂P - D would not cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from activation_compression.derivations import DEEPEST, Inputs, Missing
from activation_compression.nodes import Node, setting
from activation_compression.recipe import Recipe

__all__ = ["attended"]

Kernel = Callable[..., Sequence[Tensor]]


def _cpu(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, **settings: object) -> Sequence[Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias, **settings)


def _flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, **settings: object) -> Sequence[Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, **settings)


def _with_bias(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, **settings: object
) -> Sequence[Tensor]:
    return kernel(q, k, v, bias, True, **settings)


KERNELS: dict[str, Kernel] = {
    "ScaledDotProductFlashAttentionForCpuBackward0": _cpu,
    "ScaledDotProductFlashAttentionBackward0": _flash,
    "ScaledDotProductEfficientAttentionBackward0": partial(
        _with_bias, torch.ops.aten._scaled_dot_product_efficient_attention
    ),
    "ScaledDotProductCudnnAttentionBackward0": partial(
        _with_bias, torch.ops.aten._scaled_dot_product_cudnn_attention
    ),
}
"""Node → its kernel: q, k, v, bias → output, log-sum-exp, ..."""


class _Rerun:
    """Runs the kernel once for both results, and keeps the other one until it is needed."""

    def __init__(self, kernel: Kernel, settings: Mapping[str, object]) -> None:
        self._kernel, self._settings = kernel, settings
        self._other: dict[int, Tensor] = {}
        self._lock = Lock()

    def __call__(self, which: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the output (0) or the log-sum-exp (1), and keep the other."""
        with self._lock:
            kept = self._other.pop(which, None)
            if kept is not None:
                return kept
            results = self._kernel(q, k, v, bias, **self._settings)[:2]
            self._other = {1 - which: results[1 - which]}
            return results[which]


def attended(node: Node, value: str, like: Tensor) -> Recipe | None:
    """Return how to compute a result of fused attention again; None if that is impossible or not needed.

    With dropout the output cannot be computed again, since the kernel drew the mask. The log-sum-exp can.

    Args:
        node: The node of the attention.
        value: "output" or the name of the log-sum-exp.
        like: The result.
    """
    inputs = Inputs(node, DEEPEST)
    try:
        sources = [inputs.saved(name) for name in ("query", "key", "value")]
        mask = next((n for n in ("attn_mask", "attn_bias") if hasattr(node, f"_raw_saved_{n}")), None)
        if mask is not None and getattr(node, f"_raw_saved_{mask}").data is not None:
            sources.append(inputs.saved(mask))
    except Missing:
        return None
    if all(source.is_exact for source in sources):
        return None
    scale, causal = setting(node, "scale"), bool(setting(node, "is_causal"))
    if setting(node, "dropout_p") == 0:
        rerun = node.metadata.get(_Rerun)
        if rerun is None:
            rerun = _Rerun(KERNELS[node.name()], {"is_causal": causal, "scale": scale})
            node.metadata[_Rerun] = rerun
        return Recipe("attention", partial(rerun, int(value != "output")), tuple(sources), repeats=False)
    if value == "output":
        return None
    compute = partial(_log_sum_exp, scale, causal, tuple(like.shape), like.dtype)
    return Recipe("attention", compute, tuple(sources), repeats=False)


def _log_sum_exp(
    scale: float | None,
    causal: bool,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Return ℓ by its definition; padding beyond the queries is ∞, so that it adds nothing."""
    rows: list[Tensor] = []
    heads = q.shape[1]
    for number in range(len(q)):  # one example at a time: the scores of all never exist together
        keys = k[number].float().repeat_interleave(heads // k.shape[1], 0)
        scores = (q[number].float() * (scale or q.shape[-1] ** -0.5)) @ keys.mT
        if mask is not None:
            mask_of_row = mask.expand(len(q), *mask.shape[1:])[number] if mask.ndim == 4 else mask
            if mask_of_row.dtype == torch.bool:
                scores = scores.masked_fill(~mask_of_row, -torch.inf)
            else:
                scores = scores + mask_of_row
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        rows.append(scores.logsumexp(-1))
    sums = torch.stack(rows)
    if sums.numel() != torch.Size(shape).numel():
        sums = F.pad(sums, (0, shape[-1] - sums.shape[-1]), value=torch.inf)
    return sums.reshape(shape).to(dtype)
