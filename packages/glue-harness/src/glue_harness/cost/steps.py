"""Training steps on made-up rows: the steps that `profile` and `capacity` measure."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from finetune_common.measure import SavedTensorMeter
from glue_harness.config.fields import RunConfig
from glue_harness.run.assembly import create_untrained, tell

__all__ = ["Steps"]


class Steps:
    """A randomly initialised classifier, its methods, and one batch of full rows.

    Args:
        config: Model, slots, batch size, length and precision.
        device: The device of the model.
        attention: "eager" uses plain operations, others a fused kernel; by default the model's own.
    """

    def __init__(self, config: RunConfig, device: str = "cpu", attention: str | None = None) -> None:
        self.config, self.device = config, device
        self.run = create_untrained(config, device, attention)
        self.methods, self.model = self.run.methods, self.run.model.train()
        if config.compile:
            self.methods.compile(self.model)
        rows = (config.batch_size, config.max_length)
        text = cast("PretrainedConfig", self.model.config).get_text_config()
        words = torch.randint(5, text.vocab_size - 1, rows, device=device)
        end = getattr(text, "eos_token_id", None)
        if isinstance(end, int) and 0 <= end < text.vocab_size:  # T5 and BART classify by one end in each row
            words += words >= end
            words[:, -1] = end
        self.batch = {
            "input_ids": words,
            "labels": torch.zeros(rows[0], dtype=torch.long, device=device),
        }
        self.optimizer: torch.optim.Optimizer | None = None

    def prepare_optimizer(self) -> None:
        """Build the optimizer and attach the gradient methods."""
        self.run.prepare(self.config.accumulate)
        self.optimizer = self.run.optimizer

    def _loss(self) -> Tensor:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        with torch.autocast(self.device, half) if half else nullcontext():
            return self.model(**self.batch).loss

    def forward(self) -> Tensor:
        """Return the loss of a forward pass in the context of the activation slot."""
        with self.methods.activation.around_forward(self.model):
            return self._loss()

    def metered_forward(self) -> tuple[Tensor, int]:
        """Return the loss of a forward pass and the bytes it keeps, counted by the method or a meter."""
        meter = SavedTensorMeter(self.model)
        with meter:
            loss = self.forward()
        return loss, cast("int", self.methods.activation.stats().get("stored_bytes", meter.bytes))

    def forward_backward(self) -> None:
        """Make the passes of one optimizer step; gradients are left in place."""
        for _ in range(self.config.accumulate):
            (self.forward() / self.config.accumulate).backward()

    def finish(self, step: int) -> None:
        """Run the methods' hooks, take the optimizer's step and drop the gradients."""
        parts = self.run.parts.values()
        tell(parts, "after_backward", step, self._loss)
        if self.optimizer is not None:
            self.optimizer.step()
        tell(parts, "on_step", step)
        self.model.zero_grad()

    def timed(self, step: int) -> tuple[float, float]:
        """Take a step; return the seconds of its passes, and of the whole step."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        tell(self.run.parts.values(), "before_forward", step)
        self.forward_backward()
        wait()
        between = time.perf_counter()
        self.finish(step)
        wait()
        return between - began, time.perf_counter() - began

    @property
    def trained(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def state_bytes(self) -> dict[str, int]:
        """Return the current bytes of parameters, gradients and optimizer state."""
        tensors: list[Tensor] = [*self.model.parameters(), *self.model.buffers()]
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        return {
            "parameters": sum(t.nbytes for t in tensors),
            "gradients": sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None),
            "optimizer": sum(t.nbytes for state in states for t in state.values() if isinstance(t, Tensor)),
        }
