"""LoRA through peft: its layers are inserted into the model, with an initialisation of our own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.blocks import is_transposed
from parameter_efficient.configs import LoRA
from parameter_efficient.injected import ADAPTER, Injected
from parameter_efficient.ownership import not_its_own

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["LowRank"]

CHANGING = ("pissa", "olora")
"""Initialisations that subtract their first update from the base weights."""


class LowRank(Injected):
    """Low-rank updates of a model's matrices.

    Args:
        model: The model.
        targets: Its matrices to adapt, by name.
        config: The configuration of LoRA.
        generator: Draws A and B.
        ranks: Name of a matrix → its rank, if it differs from the configuration's.
        alphas: Name of a matrix → its alpha, likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        config: LoRA,
        generator: torch.Generator,
        ranks: Mapping[str, int],
        alphas: Mapping[str, float],
    ) -> None:
        self._targets, self._config, self._generator = list(targets), config, generator
        self._other_weights: dict[str, Tensor] = {}
        if config.init in CHANGING:
            self._other_weights = _copies(model, targets, config)
        try:
            super().__init__(model, _settings(targets, config, ranks, alphas), config.dtype, generator)
        except BaseException:
            for name, first in self._other_weights.items():
                cast(Tensor, targets[name].weight).data.copy_(first)
            raise

    def _initialise(self) -> None:
        """Draw A and B anew: peft drew them with random numbers of the global kind."""
        if self._config.init in INITIALISED_HERE:
            for name in self._targets:
                _draw(self.layers[name], self._config.init, self._generator)

    def _exchange_weights(self) -> None:
        """Swap the residual base weights (pissa, olora) with the complete ones."""
        for name, other in self._other_weights.items():
            weight = self.layers[name].get_base_layer().weight
            self._other_weights[name] = weight.detach().clone()
            weight.data.copy_(other)

    def detach(self) -> None:
        """Take peft's layers out."""
        self._exchange_weights()
        super().detach()

    def reattach(self) -> None:
        """Put them back."""
        super().reattach()
        self._exchange_weights()


def _copies(model: nn.Module, targets: Mapping[str, nn.Module], config: LoRA) -> dict[str, Tensor]:
    """Return copies of the weights that an initialisation is about to change, if it may."""
    refused = f"init={config.init!r} changes the base weights"
    weights: dict[str, Tensor] = {
        n: w for n, m in targets.items() if (w := getattr(m, "weight", None)) is not None
    }
    if len(weights) < len(targets) or not all(weight.is_floating_point() for weight in weights.values()):
        raise ConfigurationError(f"{refused}, and these are quantised or in no `weight`: use init='kaiming'")
    if foreign := not_its_own(model, targets):
        name, reason = foreign
        raise ConfigurationError(f"{refused}, and those of {name} cannot: {reason}; use init='kaiming'")
    if config.init == "olora" and any(map(is_transposed, targets.values())):
        raise ConfigurationError(
            "init='olora' does not work with transposed matrices (gpt2): use init='pissa'"
        )
    return {name: weight.detach().clone() for name, weight in weights.items()}


def _settings(
    targets: Mapping[str, nn.Module], config: LoRA, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> LoraConfig:
    from peft import LoraConfig

    def alpha(name: str) -> float:
        rank, given_alpha = ranks.get(name, config.rank), alphas.get(name, config.alpha)
        return given_alpha if given_alpha is not None else math.sqrt(rank) if config.rslora else rank

    exceptions = {f"^{re.escape(name)}": name for name in targets if name in ranks or name in alphas}
    return LoraConfig(
        r=config.rank,
        lora_alpha=alpha(""),  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=list(targets),
        use_rslora=config.rslora,
        use_dora=config.dora,
        rank_pattern={key: ranks.get(name, config.rank) for key, name in exceptions.items()},
        alpha_pattern={key: alpha(name) for key, name in exceptions.items()},  # type: ignore[arg-type]
        init_lora_weights=True if config.init in INITIALISED_HERE else config.init,  # type: ignore[arg-type]
        fan_in_fan_out=any(is_transposed(module) for module in targets.values()),
    )


INITIALISED_HERE = ("kaiming", "normal", "random")


def _draw(layer: Any, init: str, generator: torch.Generator) -> None:
    if ADAPTER in layer.lora_A:
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    else:
        down, up = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    with torch.no_grad():
        if init == "normal":
            down.copy_(torch.randn(down.shape, generator=generator))
        else:
            down.copy_(_uniform(down.shape, generator))
        up.copy_(_uniform(up.shape, generator) if init == "random" else torch.zeros(up.shape))


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Draw as `nn.Linear` does: U(-1/√inputs, 1/√inputs), kaiming uniform with a = √5."""
    return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])
