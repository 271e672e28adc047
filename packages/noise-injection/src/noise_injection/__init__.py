"""Gaussian gradient noise, adaptive (AGNI) or annealed, on any torch optimizer."""

from typing import TYPE_CHECKING

from finetune_common.lazy import lazy_exports

if TYPE_CHECKING:
    from noise_injection.adaptive import AdaptiveGradientNoise
    from noise_injection.annealed import AnnealedGradientNoise
    from noise_injection.monitor import GradientNoiseMonitor

__all__ = ["AdaptiveGradientNoise", "AnnealedGradientNoise", "GradientNoiseMonitor"]

__getattr__ = lazy_exports(
    __name__,
    {
        "AdaptiveGradientNoise": ".adaptive",
        "AnnealedGradientNoise": ".annealed",
        "GradientNoiseMonitor": ".monitor",
    },
)
