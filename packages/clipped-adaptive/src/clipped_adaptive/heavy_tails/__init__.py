"""Measure the tails of gradient noise.

outlier_ratios, hill, hill_path    statistics of a sample
sample_gradient_noise              a sample: noise norms at a fixed point
TailMonitor                        both, every N steps of a training run
"""

from clipped_adaptive.heavy_tails.monitor import TailMonitor
from clipped_adaptive.heavy_tails.noise import sample_gradient_noise
from clipped_adaptive.heavy_tails.statistics import hill, hill_path, outlier_ratios

__all__ = ["TailMonitor", "hill", "hill_path", "outlier_ratios", "sample_gradient_noise"]
