"""The modes of clipping. Nothing here imports torch."""

__all__ = ["CLIPS"]

CLIPS = ("none", "global", "layer", "local", "elementwise")
"""What shares a norm: nothing, all parameters of the optimizer, a layer, a tensor, an element."""
