"""Base weights that bitsandbytes keeps in 4 or 8 bits."""

from __future__ import annotations

from typing import Any

from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment
from parameter_efficient.configs import QLoRA

__all__ = ["Differentiable", "check_quantised"]


def check_quantised(model: nn.Module, config: QLoRA) -> None:
    """Refuse a model whose weights are not in the bits that a configuration says."""
    bits = 8 if config.quant_type == "int8" else 4
    if not getattr(model, f"is_loaded_in_{bits}bit", False):
        raise ConfigurationError(
            f"qlora needs a model that was loaded in {bits} bits: pass from_pretrained what "
            "QLoRAMethod(config)"
            ".load_kwargs() returns, or use lora"
        )


class Differentiable(Attachment):
    """4-bit weights on a CPU stay in the format that has a backward pass.

    On CPUs with bf16 instructions bitsandbytes packs them for inference in the first pass without
    gradients, an evaluation say, and no gradient passes them from then on.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules: list[Any] = [
            module for module in model.modules() if getattr(module, "support_avx512bf16_for_cpu", False)
        ]
        self.reattach()

    def detach(self) -> None:
        """Let them be packed again."""
        for module in self._modules:
            module.support_avx512bf16_for_cpu = True

    def reattach(self) -> None:
        """Unpack what is packed, and keep it so."""
        for module in self._modules:
            module.support_avx512bf16_for_cpu = False
            module._save_to_state_dict({}, "", True)  # unpacks

    def merge(self) -> None:
        """Nothing is to be done: the output does not depend on it."""
