"""Activations that wait for the backward pass in 1 to 8 bits an element."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from activation_compression.checkpointing import checkpoint_blocks
    from activation_compression.compressor import ActivationCompressor, compress_activations
    from activation_compression.quantizer import Quantized, dequantize, quantize

__all__ = [
    "ActivationCompressor",
    "Quantized",
    "checkpoint_blocks",
    "compress_activations",
    "dequantize",
    "quantize",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ActivationCompressor": ".compressor",
        "Quantized": ".quantizer",
        "checkpoint_blocks": ".checkpointing",
        "compress_activations": ".compressor",
        "dequantize": ".quantizer",
        "quantize": ".quantizer",
    },
)
