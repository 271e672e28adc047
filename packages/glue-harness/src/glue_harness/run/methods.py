"""The methods that a configuration names."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, packages_distributions, version
from typing import TYPE_CHECKING, Any

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError
from finetune_common.slots import Activation, Adaptation, Gradient, Monitor, Optimizer, available, find
from glue_harness.config.fields import RunConfig

if TYPE_CHECKING:
    import torch

__all__ = ["Methods", "build_methods", "holder", "method_versions"]


@dataclass(frozen=True)
class Methods:
    """The methods of one run, slot by slot."""

    adaptation: Adaptation
    activation: Activation
    gradient: list[Gradient]
    optimizer: Optimizer
    monitor: list[Monitor]

    def check_sharded(self) -> None:
        """Refuse methods that cannot work on sharded parameters.

        Raises:
            ConfigurationError: Names the method and an alternative.
        """
        one_each = (self.adaptation, self.activation, self.optimizer)
        for method in (*one_each, *self.gradient, *self.monitor):
            if reason := getattr(method, "not_sharded", None):
                raise ConfigurationError(f"--sharding fsdp: {method.name!r} {reason}, or use --sharding none")

    def compile(self, model: torch.nn.Module) -> None:
        """Compile a model in place, with the options of the activation method.

        Raises:
            ConfigurationError: The activation method cannot be compiled.
        """
        options = getattr(self.activation, "compile_options", dict)()
        model.compile(dynamic=True, options=options or None)  # one graph for texts of all lengths

    def warn_of_idle_clipping(self, max_grad_norm: float) -> None:
        """Warn if an optimizer's clipping never acts, because gradients are clipped before."""
        level = getattr(self.optimizer, "clips_at", None)
        if level is not None and 0 < max_grad_norm <= level and not self.gradient:
            warnings.warn(
                f"--max-grad-norm {max_grad_norm:g} acts first, so {self.optimizer.name}'s clipping at "
                f"{level:g} has no effect: give --max-grad-norm 0, or a lower level",
                stacklevel=2,
            )


def _build(slot: str, choice: Settings) -> Any:
    method = find(slot, choice["name"])
    return method(method.Options(**{key: value for key, value in choice.items() if key != "name"}))


def build_methods(config: RunConfig) -> Methods:
    """Instantiate a configuration's methods; parsing has checked their options."""
    return Methods(
        adaptation=_build("adaptation", config.adaptation),
        activation=_build("activation", config.activation),
        gradient=[_build("gradient", choice) for choice in config.gradient],
        optimizer=_build("optimizer", config.optimizer),
        monitor=[_build("monitor", choice) for choice in config.monitor],
    )


def holder(slot: str, name: str) -> Distribution | None:
    """Return the installed package that a method is from; None if none is known.

    Args:
        slot: One of `finetune_common.slots.GROUPS`.
        name: The method's name, or the path of its class.
    """
    if "." not in name:
        return available(slot)[name].dist
    packages = packages_distributions().get(name.partition(".")[0])
    return distribution(packages[0]) if packages else None


def method_versions(config: RunConfig) -> dict[str, str]:
    """Return the version of every package whose method a run uses."""
    chosen = [
        ("adaptation", config.adaptation),
        ("activation", config.activation),
        ("optimizer", config.optimizer),
    ]
    chosen += [("gradient", choice) for choice in config.gradient]
    chosen += [("monitor", choice) for choice in config.monitor]
    distributions = [holder(slot, choice["name"]) for slot, choice in chosen]
    return {dist.name: dist.version for dist in distributions if dist} | {
        "finetune-common": version("finetune-common")
    }
