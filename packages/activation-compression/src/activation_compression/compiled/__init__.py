"""Activations of compiled models in few bits.

activation_compression.compiled.options     `compile_options`, what a user calls
activation_compression.compiled.settings    what packing is to do
activation_compression.compiled.partitioner torch's partition, then packing
activation_compression.compiled.packing     what crosses from the forward to the backward graph, packed
activation_compression.compiled.readings    what the backward graph does with each value, by the table
activation_compression.compiled.groups      which elements share a minimum and a step
activation_compression.compiled.made_again  what need not cross
activation_compression.compiled.attention   fused attention, run again
activation_compression.compiled.picked      what backward needs at one position of an axis only
activation_compression.compiled.zeros       gradients that are zero at all others
activation_compression.compiled.crossing    a pair of graphs
activation_compression.compiled.calls       what a node calls
activation_compression.compiled.tensors     what a node stands for
activation_compression.compiled.naming      names of tensors
activation_compression.compiled.operators   the operations that pack and unpack
activation_compression.compiled.written_out decoding as a part of the compiler's own kernels
"""

from activation_compression.compiled.options import CompileOptions, compile_options

__all__ = ["CompileOptions", "compile_options"]
