"""Saved tensors in half their bytes."""

import torch


class Halves:
    """Keeps float32 tensors as bfloat16 until backward, and counts their bytes and the steps."""

    def __init__(self) -> None:
        self.stored_bytes = 0
        self.steps = 0

    def around_forward(self) -> torch.autograd.graph.saved_tensors_hooks:
        self.stored_bytes = 0
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed[0].to(packed[1]))

    def _pack(self, tensor: torch.Tensor) -> tuple[torch.Tensor, torch.dtype]:
        kept = tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
        self.stored_bytes += kept.nbytes
        return kept, tensor.dtype

    def after_backward(self, step: int, loss_fn) -> None:
        self.steps += 1
        assert step == self.steps
        with torch.random.fork_rng(), torch.no_grad():
            assert torch.isfinite(loss_fn())
