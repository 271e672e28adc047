"""Training steps on made-up rows: what `profile` and `capacity` look at."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor

from finetune_common.errors import ConfigurationError
from finetune_common.measure import SavedTensorMeter
from glue_harness.architectures import changed, find_config
from glue_harness.config import RunConfig
from glue_harness.methods import Methods, build_methods
from glue_harness.models import check_positions, parameter_groups

__all__ = ["Steps"]


class Steps:
    """A randomly initialised classifier, its methods, and one batch of full rows.

    Args:
        config: Model, slots, batch size, length and precision.
        device: Where it lives.
    """

    def __init__(self, config: RunConfig, device: str = "cpu") -> None:
        self.config, self.device = config, device
        labels = {"num_labels": 2, "problem_type": "single_label_classification"}
        shape = changed(find_config(config.model), {**labels, **config.model_config})
        torch.manual_seed(config.seed)
        self.methods: Methods = build_methods(config)
        with torch.device(device):
            try:
                model = transformers.AutoModelForSequenceClassification.from_config(shape)
            except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
                reason = " ".join(str(error).split())[:160]
                raise ConfigurationError(
                    f"--model {config.model}: no model of this shape: {reason}"
                ) from None
            check_positions(model, config.max_length)
            self.model = self.methods.adaptation.apply(model).train()
        rows = (config.batch_size, config.max_length)
        words = shape.get_text_config().vocab_size
        self.batch = {
            "input_ids": torch.randint(5, words, rows, device=device),
            "labels": torch.zeros(rows[0], dtype=torch.long, device=device),
        }
        self.optimizer: torch.optim.Optimizer | None = None

    def prepare_optimizer(self) -> None:
        """Build the optimizer and attach the gradient methods."""
        groups = parameter_groups(self.model, self.config.weight_decay)
        self.optimizer = self.methods.optimizer.build(self.model, groups)
        for gradient in self.methods.gradient:
            gradient.attach(self.optimizer, self.config.accumulate)

    def _loss(self) -> Tensor:
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        with torch.autocast(self.device, half) if half else nullcontext():
            return self.model(**self.batch).loss

    def forward(self) -> Tensor:
        """Return the loss of a forward pass in the context of the activation slot."""
        with self.methods.activation.around_forward(self.model):
            return self._loss()

    def metered_forward(self) -> tuple[Tensor, int]:
        """Return the loss of a forward pass and the bytes it keeps: the method's own count, or a meter's."""
        meter = SavedTensorMeter(self.model)
        with meter:
            loss = self.forward()
        return loss, int(self.methods.activation.stats().get("stored_bytes", meter.bytes))

    def forward_backward(self) -> None:
        """Make the passes of one optimizer step; gradients are left in place."""
        for _ in range(self.config.accumulate):
            (self.forward() / self.config.accumulate).backward()

    def finish(self, step: int) -> None:
        """Let the activation slot act, take the optimizer's step and drop the gradients."""
        self.methods.activation.after_backward(step, self._loss)
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad()

    def timed(self, step: int) -> tuple[float, float]:
        """Take a step; return the seconds of its passes, and those of all of it."""
        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        began = time.perf_counter()
        self.forward_backward()
        wait()
        between = time.perf_counter()
        self.finish(step)
        wait()
        return between - began, time.perf_counter() - began

    def state_bytes(self) -> dict[str, int]:
        """Return the bytes of parameters, gradients and optimizer state as they are now."""
        own: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        states = self.optimizer.state.values() if self.optimizer is not None else ()
        return {
            "parameters": sum(t.nbytes for t in own),
            "gradients": sum(p.grad.nbytes for p in self.model.parameters() if p.grad is not None),
            "optimizer": sum(t.nbytes for state in states for t in state.values() if isinstance(t, Tensor)),
        }
