"""Read LoRA that peft saved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune_common.errors import ConfigurationError
from parameter_efficient.configs import LoRA
from parameter_efficient.low_rank import ADAPTER

__all__ = ["PEFT_CONFIG", "read_peft"]

PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNSUPPORTED = ("rank_pattern", "alpha_pattern", "layer_replication", "trainable_token_indices")
INITIALISATIONS = (True, False, "gaussian")
"""Those that leave the base weights alone."""


def _refused(folder: Path, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"{folder}: this peft checkpoint cannot be loaded ({reason}): load it with peft"
    )


def read_peft(folder: Path) -> tuple[LoRA, dict[str, Tensor]]:
    """Read a peft LoRA checkpoint.

    Returns:
        The configuration, and the tensors by the names that they have in the adapted model.

    Raises:
        ConfigurationError: It is no LoRA, or LoRA in a form that `LoRA` does not have.
    """
    from safetensors.torch import load_file

    described: dict[str, Any] = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    if described.get("peft_type") != "LORA":
        raise _refused(folder, f"it is {described.get('peft_type')}, not LORA")
    if described.get("bias", "none") != "none" or any(described.get(key) for key in UNSUPPORTED):
        raise _refused(folder, "it trains biases or has ranks that differ")
    initialisation = described.get("init_lora_weights", True)
    if initialisation not in INITIALISATIONS:
        raise _refused(folder, f"init_lora_weights={initialisation!r} may have changed the base weights")
    if not (folder / PEFT_WEIGHTS).exists():
        raise _refused(folder, f"it has no {PEFT_WEIGHTS}")
    tensors, adapted = {}, set()
    for key, tensor in load_file(folder / PEFT_WEIGHTS).items():
        name = key.removeprefix("base_model.model.")
        if match := re.fullmatch(
            r"(.*)\.(lora_[AB])\.weight|(.*)\.(lora_magnitude_vector)(?:\.weight)?", name
        ):
            module, part = match[1] or match[3], match[2] or match[4]
            adapted.add(module)
            name = f"{module}.{part}.{ADAPTER}.weight"
        tensors[name] = tensor
    config = LoRA(
        rank=described["r"],
        targets=tuple(sorted(re.escape(name) for name in adapted)),
        alpha=described["lora_alpha"],
        dropout=described["lora_dropout"],
        rslora=described.get("use_rslora", False),
        dora=described.get("use_dora", False),
    )
    return config, tensors
