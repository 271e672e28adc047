"""Where the gradient's variance can come from. Nothing here imports torch."""

__all__ = ["VARIANCES"]

VARIANCES = ("microbatch", "running", "ema")
"""Between a step's micro-batches, over all steps, or an exponential moving one."""
