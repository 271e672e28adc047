"""A fingerprint of a base model: names and shapes of its tensors, and a few of their numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

__all__ = ["difference", "fingerprint"]

TENSORS = 64
"""At most so many tensors give numbers, four each: first, last and two between."""
TOLERANCE = 0.01
"""Relative: a base in bfloat16 is the same base."""


def fingerprint(model: nn.Module, trained: Collection[str]) -> dict[str, Any]:
    """Describe the base of an adapted model.

    Args:
        model: The model.
        trained: Names of the parameters that train or were added; their numbers are left out.

    Returns:
        Plain data: `tensors`, how many there are; `shapes`, a digest of names and shapes; `values`, name →
        four numbers.
    """
    named = {name.replace(".base_layer.", "."): (name, p) for name, p in model.named_parameters()}
    added = {short for short, (name, _) in named.items() if name in trained}
    rest = {short: p for short, (_, p) in named.items() if short not in added}
    lines = []
    for short, parameter in sorted(rest.items()):
        state = getattr(parameter, "quant_state", None)
        lines.append(f"{short} {tuple(parameter.shape if state is None else state.shape)}")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    numbers = [s for s, p in rest.items() if p.is_floating_point() and not p.is_meta and p.numel()]
    step = max(1, -(-len(numbers) // TENSORS))
    words = [short for short in numbers if "embed" in short or "wte" in short]
    values = {}
    for short in dict.fromkeys([*words[:8], *numbers[::step]]):
        flat = rest[short].detach().reshape(-1)
        places = torch.tensor([0, len(flat) // 3, 2 * len(flat) // 3, len(flat) - 1], device=flat.device)
        values[short] = flat[places].float().tolist()
    return {"tensors": len(rest), "shapes": digest, "values": values}


def difference(saved: dict[str, Any], current: dict[str, Any]) -> str:
    """Return what differs between two fingerprints, in a few words; "" for the same base."""
    if saved["shapes"] != current["shapes"]:
        counts = f"{current['tensors']} tensors of other names or shapes than the {saved['tensors']}"
        return f"{counts} of the base that it was made on"
    both = saved["values"].keys() & current["values"].keys()
    for name in sorted(both):
        for one, other in zip(saved["values"][name], current["values"][name], strict=True):
            if abs(one - other) > TOLERANCE * max(abs(one), abs(other)) + 1e-6:
                return f"other numbers in {name} than the base that it was made on"
    return ""
