"""LoRA through peft: its layers are put into the model in place, with an initialisation of our own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.attachment import Attachment, Outside, place_of_new
from parameter_efficient.blocks import is_experts
from parameter_efficient.configs import LoRA

__all__ = ["LowRank"]

ADAPTER = "default"


class LowRank(Attachment):
    """Low-rank updates of a model's matrices.

    Args:
        model: The model.
        targets: Its matrices to adapt, by name.
        config: What.
        generator: Draws A and B.
    """

    def __init__(
        self, model: nn.Module, targets: Mapping[str, nn.Module], config: LoRA, generator: torch.Generator
    ) -> None:
        self._model = model
        stacked = [name for name, module in targets.items() if is_experts(module)]
        if stacked:
            raise ConfigurationError(
                f"{stacked[0]} ({type(targets[stacked[0]]).__name__}) holds the matrices of its "
                "experts in one, on "
                "which there is no LoRA here: choose q, k, v, o, or ffn-only for the experts"
            )
        try:
            self._inject(config, targets)
        except BaseException:
            self._exchange(targets)
            vars(model).pop("peft_config", None)
            raise
        self._layers: dict[str, Any] = {name: model.get_submodule(name) for name in targets}
        self._before: dict[str, Tensor] = {}
        self._outside: list[Outside] = []
        for layer in self._layers.values():
            _initialise(layer, config, generator)
            layer.train(model.training)
        for parameter in self.parameters():
            place = place_of_new(config.dtype, *self._layers.values())
            parameter.data = parameter.data.to(**place)

    def _inject(self, config: LoRA, targets: Mapping[str, nn.Module]) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        alpha = config.alpha
        if alpha is None:
            alpha = math.sqrt(config.rank) if config.rslora else config.rank
        settings: Any = LoraConfig(
            r=config.rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=list(targets),
            use_rslora=config.rslora,
            use_dora=config.dora,
            fan_in_fan_out=any(not isinstance(module, nn.Linear) for module in targets.values()),
        )
        device = next(self._model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            inject_adapter_in_model(settings, self._model)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return A, B and, with DoRA, the norms."""
        for layer in self._layers.values():
            for names in layer.adapter_layer_names:
                module = getattr(layer, names)
                if isinstance(module, nn.Module):
                    yield from module.parameters()

    def _exchange(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            parent, _, attribute = name.rpartition(".")
            setattr(self._model.get_submodule(parent), attribute, module)

    def detach(self) -> None:
        """Take peft's layers out."""
        self._exchange({name: layer.get_base_layer() for name, layer in self._layers.items()})
        del self._model.peft_config

    def merge(self, safe: bool = True) -> None:
        """Add the updates to the matrices.

        Args:
            safe: Refuse where that gives a number that is not finite; no matrix is changed then.
        """
        for name, layer in self._layers.items():
            weight = layer.get_base_layer().weight
            if not weight.is_floating_point():
                raise ConfigurationError(
                    "LoRA on quantised weights cannot be merged: they would be rounded anew"
                )
            if safe and not bool((weight + layer.get_delta_weight(ADAPTER).to(weight)).isfinite().all()):
                raise ConfigurationError(
                    f"merging {name} gives numbers that are not finite: training has diverged; "
                    "take an earlier "
                    "checkpoint, or remove(model)"
                )
        for name, layer in self._layers.items():
            self._before[name] = layer.get_base_layer().weight.detach().clone()
            layer.merge()
        self._outside = [Outside(layer, layer.get_base_layer()) for layer in self._layers.values()]
        self._exchange({name: layer.get_base_layer() for name, layer in self._layers.items()})

    def unmerge(self) -> None:
        """Restore the matrices as they were, and the updates beside them."""
        for name, layer in self._layers.items():
            layer.get_base_layer().weight.data.copy_(self._before[name])
            layer.merged_adapters.clear()
        self._before.clear()
        for layer in self._outside:
            layer.catch_up()
        self._exchange(self._layers)


def _initialise(layer: Any, config: LoRA, generator: torch.Generator) -> None:
    """Draw A and B; peft has drawn its own from a copy of the global stream."""
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    with torch.no_grad():
        if config.init == "normal":
            down.copy_(torch.randn(down.shape, generator=generator))
        else:
            down.copy_(_uniform(down.shape, generator))
        up.copy_(_uniform(up.shape, generator) if config.init == "random" else torch.zeros(up.shape))


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw as `nn.Linear` does: U(-1/√inputs, 1/√inputs), kaiming uniform with a = √5."""
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])
