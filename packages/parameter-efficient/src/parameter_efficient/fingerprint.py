"""A fingerprint of a base model: names and shapes of its tensors, and a few of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import TypedDict

import torch
from torch import nn

__all__ = ["Fingerprint", "difference", "fingerprint"]

TENSORS = 64
"""Most tensors from which numbers are taken, four each: the first, the last and two between."""
TOLERANCE = 0.01
"""Relative tolerance of these numbers: a base in bfloat16 is the same base."""


class Fingerprint(TypedDict):
    """Plain data: how many tensors, a digest of names and shapes, and name → four numbers."""

    tensors: int
    shapes: str
    values: dict[str, list[float]]


def fingerprint(model: nn.Module, trained: Collection[str]) -> Fingerprint:
    """Describe the base of an adapted model.

    Args:
        model: The model.
        trained: Names of the parameters that train or were added; they are left out.
    """
    named = {name.replace(".base_layer.", "."): (name, p) for name, p in model.named_parameters()}
    added = {short for short, (name, _) in named.items() if name in trained}
    rest = {short: p for short, (_, p) in named.items() if short not in added}
    lines: list[str] = []
    for short, parameter in sorted(rest.items()):
        state = getattr(parameter, "quant_state", None)
        lines.append(f"{short} {tuple(parameter.shape if state is None else state.shape)}")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    numbers = [s for s, p in rest.items() if p.is_floating_point() and not p.is_meta and p.numel()]
    step = max(1, -(-len(numbers) // TENSORS))
    embeddings = [short for short in numbers if "embed" in short or "wte" in short]
    values: dict[str, list[float]] = {}
    for short in dict.fromkeys([*embeddings[:8], *numbers[::step]]):
        flat = rest[short].detach().reshape(-1)
        indices = torch.tensor([0, len(flat) // 3, 2 * len(flat) // 3, len(flat) - 1], device=flat.device)
        values[short] = [float(number) for number in flat[indices].float().cpu().unbind()]
    return {"tensors": len(rest), "shapes": digest, "values": values}


def difference(saved: Fingerprint, current: Fingerprint) -> str:
    """Return what differs between two fingerprints, in a few words; "" for the same base."""
    if saved["shapes"] != current["shapes"]:
        counts = f"{current['tensors']} tensors of other names or shapes than the {saved['tensors']}"
        return f"{counts} of the base that was adapted"
    both = saved["values"].keys() & current["values"].keys()
    for name in sorted(both):
        for a, b in zip(saved["values"][name], current["values"][name], strict=True):
            if abs(a - b) > TOLERANCE * max(abs(a), abs(b)) + 1e-6:
                return f"other numbers in {name} than the base that was adapted"
    return ""
