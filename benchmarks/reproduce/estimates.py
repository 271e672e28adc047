"""How long a benchmark takes at a scale: measured where its results are kept, else reckoned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from finetune_common.tasks import TASKS
from reproduce.catalogue import Benchmark
from reproduce.scales import DEFAULTS, points

__all__ = ["Estimate", "estimate", "typical_seconds"]

ENCODER = {
    "demo": 0.4,
    "MiniLM": 10.6,
    "squeezebert/squeezebert-uncased": 50.0,
    "bert-base-uncased": 85.0,
    "bert-base-cased": 85.0,
    "roberta-base": 85.0,
    "albert-base-v1": 85.0,
    "albert-base-v2": 85.0,
    "facebook/bart-base": 100.0,
    "t5-base": 198.0,
    "bert-large-cased": 302.0,
    "roberta-large": 302.0,
}
"""Model → million parameters that a token passes through; embeddings are none of them."""

FILLED = 0.5
"""Share of `max_length` that a padded row has."""

CORE, GPU = 4e10, 1.5e13
"""Arithmetic operations a second that a run gets out of a CPU core (measured: SST-2 with MiniLM), and out of
a data-centre GPU in fp32 (assumed)."""

START = 2.0
"""Seconds before a run's first step."""


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


def _operations(point: Mapping[str, Any]) -> float:
    """Return the arithmetic operations of a run: 6 a parameter and token in training, 2 in evaluation."""
    run = {**DEFAULTS, **point}
    task = TASKS[run["task"]]
    model = "MiniLM" if run["model"] == "${MINILM_DIR}" else run["model"]
    rows = min(task.rows["train"], run["max_train_samples"] or task.rows["train"])
    step = run["batch_size"] * run["accumulate"]
    trained = run["max_steps"] * step if run["max_steps"] else rows * run["epochs"]
    held_out = sum(task.rows[split] for split in task.evaluation)
    evaluations = max(1.0, trained / step / run["eval_every"] if run["eval_every"] else run["epochs"])
    tokens = FILLED * run["max_length"]
    return 1e6 * ENCODER[model] * tokens * (6 * trained + 2 * held_out * evaluations)


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
    speed = GPU if scale == "paper" else CORE
    runs = list(points(benchmark.spec(scale)))
    return Estimate(sum(START + _operations(run) / speed for run in runs), measured=False)
