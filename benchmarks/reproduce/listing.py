"""The list of benchmarks: what they are about, and the time at each scale, measured or reckoned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from glue_harness.config.fields import RunConfig
from glue_harness.cost.sweeps import CORE, GPU, run_seconds
from reproduce.catalogue import SCALES, Benchmark, catalogue
from reproduce.published import targets
from reproduce.scales import points, settings

__all__ = ["estimate", "listing", "shown", "typical_seconds"]

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
"""The shape of the model that MINILM_DIR holds."""

NOTE = (
    "Times are those of one core, at the paper scale of one GPU. Those without ≈ are from the committed "
    "results: for each part of a run (data, forward, backward, …) the median over the runs of the same task "
    "and number of steps, times their number, so that a stalled run does not count; the machine was shared, "
    "and at times much slower than alone. The others are reckoned from rows, tokens and parameters, for a "
    f"GPU that does {GPU / 1e12:.0f}·10¹² operations a second; methods that need several passes take longer."
)


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


def estimate(benchmark: Benchmark, scale: str) -> tuple[float, bool]:
    """Return the seconds of one core, at the paper scale of one GPU, and whether they were measured."""
    if (path := benchmark.kept(scale)).exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        seconds = kept.get("seconds") if benchmark.script else typical_seconds(kept)
        if seconds is not None:
            return sum(seconds.values()) if isinstance(seconds, dict) else seconds, True
    if (minutes := benchmark.at(scale).minutes) is not None:
        return 60 * minutes, False
    runs = [RunConfig(**{**settings(run), "output_dir": "none"}) for run in points(benchmark.spec(scale))]
    sized = [replace(r, model="demo", model_config=MINILM) if r.model.startswith("${") else r for r in runs]
    return run_seconds(sized, GPU if scale == "paper" else CORE), False


def shown(seconds: float, measured: bool) -> str:
    """Return an estimate as it is read: `12 min`, `≈ 3.5 h`."""
    about = "" if measured else "≈ "
    if seconds < 5400:
        return f"{about}{seconds:.0f} s" if seconds < 90 else f"{about}{seconds / 60:.0f} min"
    return f"{about}{seconds / 3600:,.{int(seconds < 36e3)}f} h"


def _cell(benchmark: Benchmark, scale: str) -> str:
    if scale not in benchmark.scales:
        return "–"
    runs = 0 if benchmark.script else sum(1 for _ in points(benchmark.spec(scale)))
    counted = f", {runs:,} run{'s' * (runs > 1)}" * bool(runs)
    return shown(*estimate(benchmark, scale)) + counted


def listing() -> str:
    """Return the list as a markdown table."""
    lines = [
        "| benchmark | what | published as | " + " | ".join(SCALES) + " |",
        "| --- | --- | --- |" + " ---: |" * len(SCALES),
    ]
    works: dict[str, list[tuple[float, bool]]] = {}
    for benchmark in catalogue().values():
        known = sum(t.benchmark == benchmark.name and t.verified for t in targets(benchmark.work))
        published = f"{benchmark.published} ({known} rows)" if known else benchmark.published or "–"
        times = " | ".join(_cell(benchmark, scale) for scale in SCALES)
        lines.append(f"| `{benchmark.name}` | {benchmark.title} | {published} | {times} |")
        if "cpu" in benchmark.scales:
            works.setdefault(benchmark.work, []).append(estimate(benchmark, "cpu"))
    sums = {
        work: (sum(s for s, _ in estimates), all(m for _, m in estimates))
        for work, estimates in works.items()
    }
    told = ", ".join(f"{work} {shown(*total)}" for work, total in sums.items())
    told = f"All of a work at the cpu scale: {told}; `--jobs 2` runs a sweep on two cores in half the time."
    return "\n".join([*lines, "", told, "", NOTE, ""])
