"""A model's structure before it is adapted, analysed on first use."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import nn

from finetune_common.errors import ConfigurationError
from parameter_efficient.architecture import Architecture, Layer, call_counts, find_architecture
from parameter_efficient.blocks import Stack, find_stacks
from parameter_efficient.configs import Config
from parameter_efficient.forward import Inputs, undisturbed, working_inputs
from parameter_efficient.heads import vocabulary_of
from parameter_efficient.targets import ROLES

__all__ = ["Anatomy"]


class Anatomy:
    """A model's blocks and inputs, and, on first use, the roles of its matrices.

    Args:
        model: The model.
        stack: encoder, decoder or both.
        example: Keyword arguments of its forward pass, or null.
    """

    def __init__(self, model: nn.Module, stack: str, example: Inputs | None) -> None:
        self.model, self._stack, self._example = model, stack, example
        self.stacks: list[Stack] = find_stacks(model)

    @cached_property
    def inputs(self) -> dict[str, object]:
        """Return keyword arguments with which a forward pass works."""
        with undisturbed(self.model):
            return working_inputs(self.model, self._example)

    @cached_property
    def architectures(self) -> list[Architecture]:
        """Return the layers to adapt, with their roles; an example may be too small to tell them."""
        found = find_architecture(self.model, self.stacks, self.inputs, stack=self._stack)
        if self._example is None or not any(architecture.refusal for architecture in found):
            return found
        try:
            with undisturbed(self.model):
                made_up = working_inputs(self.model)
        except ConfigurationError:
            return found
        larger = find_architecture(self.model, self.stacks, made_up, stack=self._stack)
        return found if any(architecture.refusal for architecture in larger) else larger

    @cached_property
    def vocabulary(self) -> list[nn.Module]:
        """Return a language model's output vocabulary, which stays frozen unless asked for."""
        return vocabulary_of(self.model, self.inputs)

    @cached_property
    def _calls(self) -> dict[str, int]:
        return call_counts(self.model, self.stacks, self.inputs)

    def _used(self) -> list[Stack]:
        """Return the stacks that take part in a forward pass."""
        return [stack for stack in self.stacks if any(self._calls.get(name) for name in stack.blocks)]

    def shared(self) -> bool:
        """Return whether blocks are used several times in a forward pass."""
        return max(self._calls.values(), default=0) > 1

    def encoder(self) -> Stack:
        """Return the stack that runs first.

        Raises:
            ConfigurationError: The model has none.
        """
        used = self._used()
        if not used:
            raise ConfigurationError(
                f"{type(self.model).__name__} has no list of equal blocks that could be cut: leave "
                "encoder_layers and pooling out"
            )
        order = list(self._calls)
        return min(used, key=lambda stack: min(order.index(name) for name in stack.blocks if name in order))

    def first_layers(self) -> list[nn.Module]:
        """Return the blocks that read embeddings: the first of each stack, or none if blocks repeat."""
        used = self._used()
        if self.shared() or not used:
            return []
        both = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        return [next(iter(stack.blocks.values())) for stack in (used if both else [self.encoder()])]

    def layers(self, config: Config) -> list[Layer]:
        """Return the layers that a configuration chooses; without roles if it gives names only.

        Raises:
            ConfigurationError: No such layer, or it needs roles that are not certain.
        """
        options = ("targets", "biases", "feed_forward", "rank_pattern", "alpha_pattern")
        targets = {target for option in options for target in _several(getattr(config, option, ()))}
        only_names = bool(targets) and not targets & set(ROLES)
        chosen: tuple[int, ...] | str = getattr(config, "layers", "all")
        if only_names and chosen == "all":
            return []
        architectures = self.architectures
        if only_names:
            kind = type(self.model).__name__
            architectures = [Architecture(kind, s, _plain(s), self.shared()) for s in self._used()[:1]]
        return [layer for architecture in architectures for layer in architecture.select(chosen)]

    def __str__(self) -> str:
        lines = [type(self.model).__name__]
        for layer in [layer for architecture in self.architectures for layer in architecture.layers]:
            lines.append(layer.name)
            for role, modules in layer.roles.items():
                for name, module in modules.items():
                    shapes = ["x".join(map(str, p.shape)) for p in module.parameters(recurse=False)]
                    lines.append(f"  {role:<15}{name.removeprefix(layer.name + '.')}  {' '.join(shapes)}")
        return "\n".join(
            lines + [architecture.refusal for architecture in self.architectures if architecture.refusal]
        )


def _several(names: str | Iterable[str]) -> tuple[str, ...]:
    return () if isinstance(names, str) else tuple(names)


def _plain(stack: Stack) -> list[Layer]:
    return [Layer(name, block, {}, {}, 0) for name, block in stack.blocks.items()]
