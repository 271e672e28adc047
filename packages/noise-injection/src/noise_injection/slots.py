"""The entry points of this package. Nothing here imports torch before a method is used."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from finetune_common.errors import ConfigurationError, check_choice, check_number
from noise_injection.variances import VARIANCES

if TYPE_CHECKING:
    import torch

    from noise_injection.adaptive import AdaptiveGradientNoise
    from noise_injection.annealed import AnnealedGradientNoise
    from noise_injection.monitor import GradientNoiseMonitor
    from noise_injection.released import ReleasedNoise

__all__ = [
    "AgniMethod",
    "AgniOptions",
    "AnnealedNoiseMethod",
    "AnnealedNoiseOptions",
    "GradientNoiseMonitorMethod",
    "NoOptions",
    "ReleasedAgniMethod",
]


@dataclass(frozen=True)
class AgniOptions:
    """Adaptive gradient noise.

    Args:
        eta: Scale of the noise's variance, at least 0; 0 is no noise.
        variance: Where the gradient's variance comes from: microbatch (needs --accumulate 2 or more, or
            several processes), running or ema.
        scale_by_norm: Whether the gradient's norm is a factor of the noise.
        seed: Seed of the noise, at least 0; null for the run's seed.
    """

    eta: float = 0.01
    variance: str = "microbatch"
    scale_by_norm: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("eta", self.eta, at_least=0, below=inf)
        check_choice("variance", self.variance, VARIANCES)
        _check_seed(self.seed)


@dataclass(frozen=True)
class AnnealedNoiseOptions:
    """Noise of variance eta / (1 + t)^gamma at step t.

    Args:
        eta: Variance at the first step, at least 0; 0 is no noise.
        gamma: How fast the variance shrinks, at least 0.
        seed: Seed of the noise, at least 0; null for the run's seed.
    """

    eta: float = 0.01
    gamma: float = 0.55
    seed: int | None = None

    def __post_init__(self) -> None:
        check_number("eta", self.eta, at_least=0, below=inf)
        check_number("gamma", self.gamma, at_least=0, below=inf)
        _check_seed(self.seed)


@dataclass(frozen=True)
class NoOptions:
    """No options."""


def _check_seed(seed: int | None) -> None:
    if seed is not None:
        check_number("seed", seed, at_least=0, below=2**63)


def _seed(given: int | None) -> int:
    """Return the given seed, or the run's. Reading the latter draws no random number."""
    import torch

    return torch.initial_seed() % 2**63 if given is None else given


class AgniMethod:
    """Gaussian noise as large as the gradient's own variance (AGNI)."""

    name = "agni"
    Options = AgniOptions

    def __init__(self, options: AgniOptions) -> None:
        self.options = options

    @property
    def not_sharded(self) -> str | None:
        """Why parameters may not be split over processes: FSDP hides the gradients of micro-batches."""
        if self.options.variance != "microbatch":
            return None
        return "cannot see the micro-batches of split gradients: use --gradient.variance running or ema"

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> AdaptiveGradientNoise:
        """Attach to an optimizer whose step sees `accumulate` micro-batches on each process.

        Raises:
            ConfigurationError: Micro-batch variance with a single micro-batch.
        """
        from finetune_common.optim.parts import processes
        from noise_injection.adaptive import AdaptiveGradientNoise

        options = self.options
        if options.variance == "microbatch" and accumulate * processes() < 2:
            raise ConfigurationError(
                f"--accumulate {accumulate} gives agni one micro-batch a step, and the variance of one is "
                "exactly zero (so is the released code's noise): use --accumulate 2 or more, or "
                "--gradient.variance running or ema"
            )
        return AdaptiveGradientNoise(
            optimizer, options.eta, options.variance, options.scale_by_norm, _seed(options.seed)
        )


class AnnealedNoiseMethod:
    """Gaussian noise whose variance shrinks with the steps."""

    name = "annealed-noise"
    Options = AnnealedNoiseOptions

    def __init__(self, options: AnnealedNoiseOptions) -> None:
        self.options = options

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> AnnealedGradientNoise:
        """Attach to an optimizer; micro-batches do not matter."""
        from noise_injection.annealed import AnnealedGradientNoise

        options = self.options
        return AnnealedGradientNoise(optimizer, options.eta, options.gamma, seed=_seed(options.seed))


class ReleasedAgniMethod:
    """AGNI as its released code runs it: no noise, but other random numbers for dropout."""

    name = "agni-as-released"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def attach(self, optimizer: torch.optim.Optimizer, accumulate: int) -> ReleasedNoise:
        """Attach to an optimizer; micro-batches do not matter."""
        from noise_injection.released import ReleasedNoise

        return ReleasedNoise(optimizer)


class GradientNoiseMonitorMethod:
    """Noise-to-gradient ratio and effective step size of every step."""

    name = "gradient-noise"
    Options = NoOptions

    def __init__(self, options: NoOptions) -> None:
        self.options = options

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> GradientNoiseMonitor:
        """Attach to an optimizer that has its noise already."""
        from noise_injection.monitor import GradientNoiseMonitor

        return GradientNoiseMonitor(optimizer)
