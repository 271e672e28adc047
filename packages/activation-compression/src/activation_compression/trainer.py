"""Compression in `transformers.Trainer`; needs the extra `[trainer]`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from activation_compression.checkpointing import restore_forward
from activation_compression.compiled import CompileOptions, compile_options
from activation_compression.compressor import ActivationCompressor
from finetune_common.arguments import explain_arguments
from finetune_common.errors import ConfigurationError

__all__ = ["CompressActivations"]


@explain_arguments
class CompressActivations(TrainerCallback, ExportableState):
    """Compress a model's activations while a Trainer trains it, also with `torch_compile=True`.

    A resumed training continues with the same roundings and widths if the Trainer's arguments set
    `restore_callback_states_from_checkpoint=True`; otherwise widths are measured again.

    Args:
        level: As for `ActivationCompressor`.
        interval: Optimizer steps between two measurements of automatic precision, on the newest batch.
        **settings: Other arguments of `ActivationCompressor`.

    Raises:
        ConfigurationError: Automatic precision with a model that returns no loss; with `torch_compile`, a
            setting that `compile_options` refuses, or a backend other than inductor.

    Examples:
        >>> callback = CompressActivations("L1")  # Trainer(model, arguments, callbacks=[callback])
        >>> callback.level
        'L1'
    """

    def __init__(self, level: str = "L1", interval: int = 1000, **settings: Any) -> None:
        self.level, self.interval, self.settings = level, interval, settings
        self.compressor: ActivationCompressor | None = None
        self.compiled: CompileOptions | None = None
        self.resumed: dict[str, object] | None = None
        self._loss: Callable[[], Tensor] | None = None
        self._wrapped: tuple[nn.Module, Callable[..., object] | None] | None = None
        self._before: dict[str, object] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        """Put the compressor around the model's forward pass in training."""
        self._unwrap()  # an interrupted training did not end
        if args.torch_compile:
            self._compile(args.torch_compile_backend)
            return
        assert model is not None
        compressor = self.compressor = ActivationCompressor(model, self.level, **self.settings)
        if self.resumed is not None:
            compressor.load_state_dict(self.resumed)
            self.resumed = None
        self._wrapped = model, vars(model).get("forward")
        plain: Callable[..., object] = model.forward

        @wraps(plain)  # the Trainer reads the signature
        def forward(*inputs: object, **named: object) -> object:
            if not model.training:
                return plain(*inputs, **named)
            self._loss = lambda: _loss(plain(*inputs, **named))
            with compressor:
                return plain(*inputs, **named)

        model.forward = forward

    def _compile(self, backend: str | None) -> None:
        """Set the options of the models that the Trainer compiles from now on."""
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
        torch.compiler.reset()  # otherwise code of an earlier training, without these options, is used again

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Measure sensitivities if the level is automatic and a measurement is due."""
        if self.compressor is None or self._loss is None or not self.compressor.level.automatic:
            return
        if state.global_step % self.interval == 0 or not self.compressor.widths:
            self.compressor.adapt(self._loss)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Restore the model's forward pass and the compiler's options."""
        self._unwrap()

    def _unwrap(self) -> None:
        if self._wrapped is not None:
            restore_forward(*self._wrapped)
        if self._before:
            for name, value in self._before.items():
                setattr(torch._inductor.config, name, value)
            torch.compiler.reset()  # a later training without this callback must not use its code
        self._before.clear()
        self._wrapped = self._loss = None

    def state(self) -> dict[str, dict[str, object]]:
        """Return what the Trainer writes into a checkpoint: settings, number of roundings, widths, log."""
        active = self.compiled if self.compiled is not None else self.compressor
        return {
            "args": {"level": self.level, "interval": self.interval, **self.settings},
            "attributes": {"resumed": active.state_dict() if active is not None else None},
        }


def _loss(output: object) -> Tensor:
    loss = getattr(output, "loss", None)
    if loss is None:
        raise ConfigurationError(
            "automatic precision needs the model's loss, and the model returned none (with label smoothing "
            "the Trainer removes the labels): use a fixed level such as L1, or label_smoothing_factor=0"
        )
    return loss
