"""Activations that wait for the backward pass in 1 to 8 bits an element."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from activation_compression.checkpointing import checkpoint_blocks
    from activation_compression.compiled import CompileOptions, compile_options
    from activation_compression.compressor import ActivationCompressor, compress_activations
    from activation_compression.quantizer import Quantized, dequantize, quantize

__all__ = [
    "ActivationCompressor",
    "CompileOptions",
    "Quantized",
    "checkpoint_blocks",
    "compile_options",
    "compress_activations",
    "dequantize",
    "quantize",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ActivationCompressor": ".compressor",
        "CompileOptions": ".compiled",
        "Quantized": ".quantizer",
        "checkpoint_blocks": ".checkpointing",
        "compile_options": ".compiled",
        "compress_activations": ".compressor",
        "dequantize": ".quantizer",
        "quantize": ".quantizer",
    },
)
