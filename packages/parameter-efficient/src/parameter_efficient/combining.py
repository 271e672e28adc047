"""A weighted sum of LoRAs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError, shown
from parameter_efficient.adaptation import adapt
from parameter_efficient.attachment import InPlace, Place
from parameter_efficient.configs import Config, LoRA
from parameter_efficient.injected import ADAPTER
from parameter_efficient.low_rank import CHANGING, LowRank
from parameter_efficient.records import Record, record_of, records_of
from parameter_efficient.statistics import Statistics
from parameter_efficient.switching import activate
from parameter_efficient.typed import named_modules

__all__ = ["combine"]

Model = TypeVar("Model", bound=nn.Module)
Update = tuple[Tensor, Tensor]
"""A, and B times its weight and scale."""


def _updates(record: Record, weight: float, updates: dict[str, list[Update]]) -> None:
    """Add a LoRA's updates: name of a matrix → A and w · scaling · B."""
    for attachment in record.attachments:
        if isinstance(attachment, LowRank):
            for name, layer in attachment.layers.items():
                down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                updates.setdefault(name, []).append((down, weight * layer.scaling[ADAPTER] * up))


@explain_arguments
def combine(model: Model, weights: Mapping[str, float], name: str) -> Model:
    """Make a new adaptation that is a weighted sum of LoRAs: ΔW = Σ_i w_i (α_i/r_i) B_i A_i, exactly.

    Its rank in each matrix is the sum of theirs. A parameter that trained in place (a head), or a buffer that
    moved, becomes θ + Σ_i w_i (θ_i - θ), where θ is the base's. The new adaptation becomes active; the others
    do not change.

    Args:
        model: A model with these adaptations.
        weights: Name of an adaptation → w_i, any number.
        name: Name of the new one.

    Returns:
        The same model.

    Raises:
        ConfigurationError: One of them is not LoRA, has DoRA's norms or changed the base weights; or the name
            is taken.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        >>> model = BertForSequenceClassification(BertConfig(num_hidden_layers=1, **sizes))
        >>> model = adapt(adapt(model, LoRA(rank=2), name="news"), LoRA(rank=3), name="mails")
        >>> model = combine(model, {"news": 0.5, "mails": 0.5}, "both")
        >>> model.bert.encoder.layer[0].attention.self.query.lora_A["default"].out_features
        5
    """
    if not weights:
        raise ConfigurationError("weights is empty: give name → weight of at least one LoRA")
    records, before = [(record_of(model, part), w) for part, w in weights.items()], records_of(model).active
    configs = [_summable(record.config, part) for (record, _), part in zip(records, weights, strict=True)]
    activate(model, None)
    updates: dict[str, list[Update]] = {}
    sums: dict[Place, Tensor] = {}
    changed: set[nn.Module] = set()
    for record, weight in records:
        _updates(record, weight, updates)
        for attachment in record.attachments:
            if isinstance(attachment, InPlace | Statistics):
                for place, first, trained in attachment.changes():
                    sums[place] = sums.get(place, first) + weight * (trained - first)
                    changed |= {place[0]} if isinstance(attachment, InPlace) else set()
    ranks = {name: sum(len(down) for down, _ in pairs) for name, pairs in updates.items()}
    names = [name for name, module in named_modules(model) if module in changed]
    config = replace(
        configs[0],
        layers="all",
        targets=tuple(re.escape(target) for target in updates),
        rank_pattern={re.escape(target): rank for target, rank in ranks.items()},
        alpha=None,
        alpha_pattern={},
        rslora=False,
        dropout=0.0,
        init="kaiming",
        also_train=tuple(re.escape(name) for name in names),
    )
    try:
        adapt(model, config, name=name, probe=False)
    except BaseException:
        activate(model, before)
        raise
    with torch.no_grad():
        for target, pairs in updates.items():
            model.get_parameter(f"{target}.lora_A.{ADAPTER}.weight").copy_(torch.cat([a for a, _ in pairs]))
            model.get_parameter(f"{target}.lora_B.{ADAPTER}.weight").copy_(
                torch.cat([b for _, b in pairs], dim=1)
            )
        for (module, attribute), value in sums.items():
            getattr(module, attribute).copy_(value)
    return model


def _summable(config: Config, name: str) -> LoRA:
    if not isinstance(config, LoRA) or config.dora or config.new_tokens or config.init in CHANGING:
        raise ConfigurationError(
            f"{shown(name)} cannot be part of a sum: only LoRA without dora, new_tokens, pissa and olora can"
        )
    return config
