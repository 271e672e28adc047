"""Adapters, LoRA, prefixes, biases, feed-forward blocks or the head alone, in any layers of a transformer."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from parameter_efficient.accounting import trainable_parameters
    from parameter_efficient.adaptation import adapt, remove
    from parameter_efficient.combining import combine
    from parameter_efficient.configs import (
        IA3,
        BitFit,
        BottleneckAdapter,
        Compacter,
        FFNTuning,
        Fusion,
        HeadOnly,
        LoRA,
        LoReFT,
        PrefixTuning,
        QLoRA,
        ThroughPeft,
    )
    from parameter_efficient.merging import merge, unmerge
    from parameter_efficient.storage import load_adaptation, save_adaptation
    from parameter_efficient.switching import activate, disabled

_MODULES = {
    ".accounting": ["trainable_parameters"],
    ".adaptation": ["adapt", "remove"],
    ".combining": ["combine"],
    ".configs": [
        "IA3",
        "BitFit",
        "BottleneckAdapter",
        "Compacter",
        "FFNTuning",
        "Fusion",
        "HeadOnly",
        "LoRA",
        "LoReFT",
        "PrefixTuning",
        "QLoRA",
        "ThroughPeft",
    ],
    ".merging": ["merge", "unmerge"],
    ".storage": ["load_adaptation", "save_adaptation"],
    ".switching": ["activate", "disabled"],
}

__all__ = [
    "IA3",
    "BitFit",
    "BottleneckAdapter",
    "Compacter",
    "FFNTuning",
    "Fusion",
    "HeadOnly",
    "LoRA",
    "LoReFT",
    "PrefixTuning",
    "QLoRA",
    "ThroughPeft",
    "activate",
    "adapt",
    "combine",
    "disabled",
    "load_adaptation",
    "merge",
    "remove",
    "save_adaptation",
    "trainable_parameters",
    "unmerge",
]

__getattr__ = lazy_exports(__name__, {name: module for module, names in _MODULES.items() for name in names})
