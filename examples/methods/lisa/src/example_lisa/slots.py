"""LISA as an adaptation: its options, and what a run tells it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_common.errors import ConfigurationError, check_number

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LISAOptions:
    """Sampling of layers.

    Args:
        layers: Layers that train at a time (γ in the paper), at least 1.
        every: Optimizer steps between two draws (K), at least 1.
        seed: Of the method's own random stream.
    """

    layers: int = 2
    every: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("layers", self.layers, at_least=1)
        check_number("every", self.every, at_least=1)


class LISAMethod:
    """A few layers train at a time, others every few steps; embeddings and head always do.

    At steps 1, K+1, 2K+1, … γ of the N layers are drawn, each with probability γ/N; the others are frozen
    until the next draw (Pan et al. 2024, algorithm 1). With γ = N it is full fine-tuning.
    """

    name = "lisa"
    Options = LISAOptions
    not_sharded = "freezes other layers as it trains, which FSDP does not follow: use --adaptation full"

    def __init__(self, options: LISAOptions) -> None:
        self.options = options

    def load_kwargs(self) -> dict[str, Any]:
        """Nothing is changed while loading."""
        return {}

    def apply(self, model: torch.nn.Module) -> torch.nn.Module:
        """Find the layers. All parameters still train, so that the optimizer gets all of them."""
        import torch

        from example_lisa.layers import find_layers

        self._layers = find_layers(model)
        if self.options.layers > len(self._layers):
            raise ConfigurationError(
                f"layers={self.options.layers}: this model has {len(self._layers)}: give at most as many"
            )
        self._random = torch.Generator().manual_seed(self.options.seed)
        return model

    def before_forward(self, step: int) -> None:
        """Draw the layers that train from this step on, where it is time to."""
        import torch

        if (step - 1) % self.options.every == 0:
            order = torch.randperm(len(self._layers), generator=self._random)
            self._train_only(order[: self.options.layers].tolist())

    def _train_only(self, chosen: Collection[int]) -> None:
        self._chosen = sorted(chosen)
        for number, layer in enumerate(self._layers):
            layer.requires_grad_(number in chosen)
            if number not in chosen:
                layer.zero_grad()  # optimizers skip what has no gradient: no decay, no momentum moves it

    def on_step(self, step: int) -> dict[str, Any]:
        """Tell which layers train, at the first step of each draw."""
        return {"lisa.layers": self._chosen} if (step - 1) % self.options.every == 0 else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the random stream and the layers drawn last."""
        return {"random": self._random.get_state(), "chosen": self._chosen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the layers of a checkpoint."""
        self._random.set_state(state["random"])
        self._train_only(state["chosen"])

    def remove(self) -> None:
        """Let every layer train again."""
        self._train_only(range(len(self._layers)))
