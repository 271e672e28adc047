"""The entry points of this package. Nothing here imports torch before a method is used."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError
from parameter_efficient.configs import (
    IA3,
    BitFit,
    BottleneckAdapter,
    Compacter,
    Config,
    FFNTuning,
    Fusion,
    HeadOnly,
    LoRA,
    LoReFT,
    PrefixTuning,
    QLoRA,
    ThroughPeft,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "BitFitMethod",
    "BottleneckAdapterMethod",
    "CompacterMethod",
    "FFNTuningMethod",
    "FusionMethod",
    "HeadOnlyMethod",
    "IA3Method",
    "LoRAMethod",
    "LoReFTMethod",
    "PrefixTuningMethod",
    "QLoRAMethod",
    "ThroughPeftMethod",
]

OUTSIDE_OF_LISTS = r"(?!.*\.\d+\.).*"
"""Names of modules in no list of blocks, which have no number in them. These are not quantised."""


class _Method:
    name: ClassVar[str]
    Options: ClassVar[type[Config]]

    def __init__(self, options: Config) -> None:
        self.options = options

    def load_kwargs(self) -> Settings:
        """Return no arguments: loading is as usual."""
        return {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Adapt the model."""
        from parameter_efficient.adaptation import adapt

        return adapt(model, self.options)

    def merged(self, model: nn.Module) -> nn.Module | None:
        """Return the model with the adaptation in its weights; None if they cannot hold it."""
        from parameter_efficient.merging import merge

        try:
            return merge(model)
        except ConfigurationError:
            return None

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained parameters."""
        from parameter_efficient.storage import save_adaptation

        save_adaptation(model, folder)

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Adapt a base model, and load the trained parameters."""
        from parameter_efficient.storage import load_adaptation

        return load_adaptation(model, folder)


class HeadOnlyMethod(_Method):
    """Only the head trains, on the features of all layers or the first ones."""

    name, Options = "head-only", HeadOnly


class BottleneckAdapterMethod(_Method):
    """A small network behind or beside a sub-layer of chosen layers."""

    name, Options = "bottleneck-adapter", BottleneckAdapter


class LoRAMethod(_Method):
    """A low-rank update of chosen matrices of chosen layers, through peft."""

    name, Options = "lora", LoRA


class QLoRAMethod(_Method):
    """LoRA on base weights that are loaded in 4 bits, through bitsandbytes."""

    name, Options = "qlora", QLoRA
    not_sharded = "keeps weights in packed bits, which cannot be split: use --adaptation lora"

    def __init__(self, options: QLoRA) -> None:
        super().__init__(options)
        self.quant_type, self.double_quant = options.quant_type, options.double_quant

    def load_kwargs(self) -> Settings:
        """Return the arguments of `from_pretrained` that quantise the weights.

        Raises:
            ConfigurationError: bitsandbytes is missing, or too old for a machine without a GPU.
        """
        if find_spec("bitsandbytes") is None:
            raise ConfigurationError(
                "adaptation 'qlora' needs bitsandbytes, which is not installed: run 'pip install "
                "bitsandbytes' or use --adaptation lora"
            )
        import torch

        on_gpu = torch.cuda.is_available()
        installed = version("bitsandbytes")
        if not on_gpu and tuple(map(int, installed.split(".")[:2])) < (0, 49):
            raise ConfigurationError(
                "adaptation 'qlora' on a machine without a GPU needs bitsandbytes 0.49 or newer, not "
                f"{installed}: update it, or use --adaptation lora"
            )
        from transformers import BitsAndBytesConfig

        compute = torch.float32
        if on_gpu:
            compute = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        four_bits = self.quant_type != "int8"
        quantization = BitsAndBytesConfig(
            load_in_4bit=four_bits,
            load_in_8bit=not four_bits,
            bnb_4bit_quant_type=self.quant_type if four_bits else "nf4",
            bnb_4bit_use_double_quant=self.double_quant and four_bits,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=[OUTSIDE_OF_LISTS],
        )
        device = torch.cuda.current_device() if on_gpu else "cpu"
        return {"quantization_config": quantization, "device_map": {"": device}}


class PrefixTuningMethod(_Method):
    """Learned keys and values before those of the tokens, in chosen layers."""

    name, Options = "prefix", PrefixTuning


class BitFitMethod(_Method):
    """Chosen biases of chosen layers."""

    name, Options = "bitfit", BitFit


class FFNTuningMethod(_Method):
    """The feed-forward blocks of chosen layers."""

    name, Options = "ffn-only", FFNTuning


class FusionMethod(_Method):
    """Several methods at once, each in its own layers."""

    name, Options = "fusion", Fusion


class IA3Method(_Method):
    """Learned factors of keys, values and inner features, through peft."""

    name, Options = "ia3", IA3


class CompacterMethod(_Method):
    """Adapters whose matrices are sums of Kronecker products with a shared part."""

    name, Options = "compacter", Compacter


class LoReFTMethod(_Method):
    """A change of hidden states, in a small subspace, behind chosen layers."""

    name, Options = "loreft", LoReFT


class ThroughPeftMethod(_Method):
    """Any method of peft that acts inside a model: its peft_type and settings."""

    name, Options = "peft", ThroughPeft
