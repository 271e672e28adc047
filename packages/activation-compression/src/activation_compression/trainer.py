"""Compression in `transformers.Trainer`; needs the extra `[trainer]`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from activation_compression.compressor import ActivationCompressor

__all__ = ["CompressActivations"]


class CompressActivations(TrainerCallback):
    """Compress the activations of a model while a Trainer trains it.

    Args:
        level: As for `ActivationCompressor`.
        interval: Optimizer steps between two measurements of automatic precision, on the newest batch.
        **settings: Further arguments of `ActivationCompressor`.

    Examples:
        >>> callback = CompressActivations("L1")  # Trainer(model, arguments, callbacks=[callback])
        >>> callback.level
        'L1'
    """

    def __init__(self, level: str = "L1", interval: int = 1000, **settings: Any) -> None:
        self.level, self.interval, self.settings = level, interval, settings
        self.compressor: ActivationCompressor | None = None
        self._batch: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Put the compressor around the model's forward pass in training."""
        compressor = self.compressor = ActivationCompressor(model, self.level, **self.settings)
        plain = model.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            if not model.training:
                return plain(*inputs, **named)
            self._batch = inputs, named
            with compressor:
                return plain(*inputs, **named)

        forward.__wrapped__ = plain  # type: ignore[attr-defined]  # the Trainer reads the signature
        model.forward = forward

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure sensitivities where the level is automatic and a measurement is due."""
        if self.compressor is None or self._batch is None or not self.compressor.level.automatic:
            return
        if state.global_step % self.interval == 0:
            (inputs, named), plain = self._batch, model.forward.__wrapped__
            self.compressor.adapt(lambda: plain(*inputs, **named).loss)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Give the model its forward pass back."""
        del model.forward
        self._batch = None
