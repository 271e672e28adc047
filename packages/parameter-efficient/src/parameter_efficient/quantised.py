"""Base weights that bitsandbytes keeps in 4 or 8 bits."""

from __future__ import annotations

from typing import Protocol, cast

from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment
from parameter_efficient.configs import QLoRA

__all__ = ["Differentiable", "check_quantised"]


def check_quantised(model: nn.Module, config: QLoRA) -> None:
    """Refuse a model whose weights are not in as many bits as a configuration asks for."""
    bits = 8 if config.quant_type == "int8" else 4
    if not getattr(model, f"is_loaded_in_{bits}bit", False):
        raise ConfigurationError(
            f"qlora needs a model that was loaded in {bits} bits: load it with "
            "from_pretrained(…, **QLoRAMethod(config).load_kwargs()), or use lora"
        )


class Linear4bit(Protocol):
    """What is used of bitsandbytes' class of this name."""

    support_avx512bf16_for_cpu: bool

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None: ...


class Differentiable(Attachment):
    """4-bit weights on a CPU stay in the format that has a backward pass.

    On CPUs with bf16 instructions bitsandbytes packs them for inference in the first pass without gradients,
    such as an evaluation. From then on no gradient passes them.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            cast(Linear4bit, module)
            for module in model.modules()
            if getattr(module, "support_avx512bf16_for_cpu", False)
        ]
        self.reattach()

    def detach(self) -> None:
        """Let them be packed again."""
        for layer in self._layers:
            layer.support_avx512bf16_for_cpu = True

    def reattach(self) -> None:
        """Unpack packed weights, and keep them unpacked."""
        for layer in self._layers:
            layer.support_avx512bf16_for_cpu = False
            layer._save_to_state_dict({}, "", True)  # pyright: ignore[reportPrivateUsage]  # it unpacks

    def merge(self) -> None:
        """Do nothing: the output does not depend on it."""
