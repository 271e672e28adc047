"""Adapters, LoRA, prefixes, biases, feed-forward blocks or the head alone, in any layers of a transformer."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from parameter_efficient.accounting import trainable_parameters
    from parameter_efficient.adaptation import adapt, merge, remove, unmerge
    from parameter_efficient.configs import (
        BitFit,
        BottleneckAdapter,
        FFNTuning,
        Fusion,
        HeadOnly,
        LoRA,
        PrefixTuning,
        QLoRA,
    )
    from parameter_efficient.storage import load_adaptation, save_adaptation

__all__ = [
    "BitFit",
    "BottleneckAdapter",
    "FFNTuning",
    "Fusion",
    "HeadOnly",
    "LoRA",
    "PrefixTuning",
    "QLoRA",
    "adapt",
    "load_adaptation",
    "merge",
    "remove",
    "save_adaptation",
    "trainable_parameters",
    "unmerge",
]

_MODULES = {
    ".accounting": ["trainable_parameters"],
    ".adaptation": ["adapt", "merge", "remove", "unmerge"],
    ".configs": [
        "BitFit",
        "BottleneckAdapter",
        "FFNTuning",
        "Fusion",
        "HeadOnly",
        "LoRA",
        "PrefixTuning",
        "QLoRA",
    ],
    ".storage": ["load_adaptation", "save_adaptation"],
}

__getattr__ = lazy_exports(__name__, {name: module for module, names in _MODULES.items() for name in names})
