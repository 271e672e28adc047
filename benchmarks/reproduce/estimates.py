"""How long a benchmark takes at a scale: measured where its results are kept, else reckoned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from glue_harness.config.fields import RunConfig
from glue_harness.cost.sweeps import CORE, GPU, run_seconds
from reproduce.catalogue import Benchmark
from reproduce.scales import points, settings

__all__ = ["Estimate", "estimate", "typical_seconds"]

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""The shape of the model that MINILM_DIR holds."""


class Estimate(float):
    """Seconds of one core, or of one GPU, and whether they were measured."""

    measured: bool

    def __new__(cls, seconds: float, measured: bool) -> Estimate:
        """Return the seconds with their origin."""
        made = super().__new__(cls, seconds)
        made.measured = measured
        return made

    def __str__(self) -> str:
        """Return it as it is read: `12 min`, `≈ 3.5 h`."""
        about = "" if self.measured else "≈ "
        if self < 90:
            return f"{about}{self:.0f} s"
        if self < 5400:
            return f"{about}{self / 60:.0f} min"
        return f"{about}{self / 3600:,.1f} h" if self < 36e3 else f"{about}{self / 3600:,.0f} h"


def typical_seconds(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the seconds of a sweep as if no run had been stalled.

    For each part of a run's time, the median over the runs of the same task and number of steps stands for
    all of them.

    Examples:
        >>> runs = [{"task": "rte", "steps": 9, "seconds": {"forward": s}} for s in (10.0, 12.0, 900.0)]
        >>> typical_seconds(runs)
        36.0
    """
    alike: dict[tuple[str, int], list[Mapping[str, float]]] = {}
    for result in results:
        alike.setdefault((result["task"], result["steps"]), []).append(result["seconds"])
    return sum(
        len(runs) * median(run.get(part, 0.0) for run in runs)
        for runs in alike.values()
        for part in sorted(set().union(*runs))
    )


def _measured(path: Path, script: bool) -> float | None:
    """Return the seconds that kept results took; None where they do not say."""
    if not path.exists():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if not script:
        return typical_seconds(kept)
    seconds = kept.get("seconds")
    return sum(seconds.values()) if isinstance(seconds, dict) else seconds


def estimate(benchmark: Benchmark, scale: str) -> Estimate:
    """Return the time of a benchmark: of one core for smoke and cpu, of one GPU for paper."""
    seconds = _measured(benchmark.kept(scale), benchmark.script is not None)
    if seconds is not None:
        return Estimate(seconds, measured=True)
    minutes = benchmark.at(scale).minutes
    if minutes is not None:
        return Estimate(60 * minutes, measured=False)
    runs = [RunConfig(**{**settings(run), "output_dir": "none"}) for run in points(benchmark.spec(scale))]
    seconds = run_seconds([_sized(run) for run in runs], GPU if scale == "paper" else CORE)
    return Estimate(seconds, measured=False)


def _sized(run: RunConfig) -> RunConfig:
    """Return a run with a model whose size is known without the folder that it stands for."""
    return replace(run, model="demo", model_config=MINILM) if run.model.startswith("${") else run
