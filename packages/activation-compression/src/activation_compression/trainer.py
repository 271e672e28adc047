"""Compression in `transformers.Trainer`; needs the extra `[trainer]`."""

from __future__ import annotations

from typing import Any

import torch._inductor.config
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from activation_compression.checkpointing import restore_forward
from activation_compression.compiled import CompileOptions, compile_options
from activation_compression.compressor import ActivationCompressor
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError

__all__ = ["CompressActivations"]


@explain_arguments
class CompressActivations(TrainerCallback, ExportableState):
    """Compress the activations of a model while a Trainer trains it, also with `torch_compile=True`.

    A resumed training goes on with the same roundings and widths if the Trainer's arguments say
    `restore_callback_states_from_checkpoint=True`; without it widths are measured anew.

    Args:
        level: As for `ActivationCompressor`.
        interval: Optimizer steps between two measurements of automatic precision, on the newest batch.
        **settings: Further arguments of `ActivationCompressor`.

    Raises:
        ConfigurationError: Automatic precision, and a model that returns no loss; with `torch_compile`, what
            `compile_options` refuses, and another backend than inductor.

    Examples:
        >>> callback = CompressActivations("L1")  # Trainer(model, arguments, callbacks=[callback])
        >>> callback.level
        'L1'
    """

    def __init__(self, level: str = "L1", interval: int = 1000, **settings: Any) -> None:
        self.level, self.interval, self.settings = level, interval, settings
        self.compressor: ActivationCompressor | None = None
        self.compiled: CompileOptions | None = None
        self.resumed: dict[str, Any] | None = None
        self._batch: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._wrapped: tuple[Any, Any] | None = None
        self._before: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Put the compressor around the model's forward pass in training."""
        self._unwrap()  # a training that was interrupted has not ended
        if args.torch_compile:
            self._compile(args.torch_compile_backend)
            return
        compressor = self.compressor = ActivationCompressor(model, self.level, **self.settings)
        if self.resumed is not None:
            compressor.load_state_dict(self.resumed)
            self.resumed = None
        self._wrapped = model, vars(model).get("forward")
        plain = model.forward

        def forward(*inputs: Any, **named: Any) -> Any:
            if not model.training:
                return plain(*inputs, **named)
            self._batch = inputs, named
            with compressor:
                return plain(*inputs, **named)

        forward.__wrapped__ = plain  # type: ignore[attr-defined]  # the Trainer reads the signature
        model.forward = forward

    def _compile(self, backend: str) -> None:
        """Let what the Trainer compiles from now on compress by itself."""
        refused = sorted(self.settings.keys() & {"bits", "formulas"})
        if backend != "inductor" or refused:
            raise ConfigurationError(
                f"activations of compiled models need torch_compile_backend='inductor' (here {backend!r}) "
                f"and neither bits= nor formulas= (here {', '.join(refused) or 'none'})"
            )
        self.compiled = compile_options(self.level, **self.settings)
        if self.resumed is not None:
            self.compiled.load_state_dict(self.resumed)
            self.resumed = None
        for name, value in self.compiled.items():
            self._before[name] = getattr(torch._inductor.config, name)
            setattr(torch._inductor.config, name, value)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Measure sensitivities where the level is automatic and a measurement is due."""
        if self.compressor is None or self._batch is None or not self.compressor.level.automatic:
            return
        if state.global_step % self.interval == 0 or not self.compressor.widths:
            (inputs, named), plain = self._batch, model.forward.__wrapped__
            self.compressor.adapt(lambda: _loss(plain(*inputs, **named)))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Give the model its forward pass back."""
        self._unwrap()

    def _unwrap(self) -> None:
        if self._wrapped is not None:
            restore_forward(*self._wrapped)
        for name, value in self._before.items():
            setattr(torch._inductor.config, name, value)
        self._before.clear()
        self._wrapped = self._batch = None

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into a checkpoint: settings, roundings drawn, widths, log."""
        own = self.compiled if self.compiled is not None else self.compressor
        return {
            "args": {"level": self.level, "interval": self.interval, **self.settings},
            "attributes": {"resumed": own and own.state_dict()},
        }


def _loss(output: Any) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ConfigurationError(
            "the model returns no loss, from which automatic precision measures (label smoothing takes the "
            "labels away from the model): use a fixed level such as L1, or label_smoothing_factor=0"
        )
    return loss
