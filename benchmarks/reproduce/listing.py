"""The list of benchmarks: what they are about, and the time at each scale."""

from __future__ import annotations

from glue_harness.cost.sweeps import GPU
from reproduce.catalogue import SCALES, Benchmark, catalogue
from reproduce.estimates import Estimate, estimate
from reproduce.published import targets
from reproduce.scales import points

__all__ = ["listing"]


def _runs(benchmark: Benchmark, scale: str) -> str:
    if benchmark.script:
        return ""
    runs = sum(1 for _ in points(benchmark.spec(scale)))
    return f", {runs:,} run{'s' * (runs > 1)}"


def _cell(benchmark: Benchmark, scale: str) -> str:
    if scale not in benchmark.scales:
        return "–"
    return f"{estimate(benchmark, scale)}{_runs(benchmark, scale)}"


def _published(benchmark: Benchmark) -> str:
    known = [t for t in targets(benchmark.work) if t.benchmark == benchmark.name and t.verified]
    return f"{benchmark.published} ({len(known)} rows)" if known else benchmark.published or "–"


def _works() -> str:
    """Return the time of all of a work's benchmarks at the cpu scale, work by work."""
    found: dict[str, list[Estimate]] = {}
    for benchmark in catalogue().values():
        if "cpu" in benchmark.scales:
            found.setdefault(benchmark.work, []).append(estimate(benchmark, "cpu"))
    sums = {work: Estimate(sum(own), all(one.measured for one in own)) for work, own in found.items()}
    return ", ".join(f"{work} {own}" for work, own in sums.items())


def listing() -> str:
    """Return the list as a markdown table."""
    lines = [
        "| benchmark | what | published as | " + " | ".join(SCALES) + " |",
        "| --- | --- | --- |" + " ---: |" * len(SCALES),
    ]
    for benchmark in catalogue().values():
        times = " | ".join(_cell(benchmark, scale) for scale in SCALES)
        lines.append(f"| `{benchmark.name}` | {benchmark.title} | {_published(benchmark)} | {times} |")
    lines += [
        "",
        f"All of a work at the cpu scale: {_works()}; `--jobs 2` runs a sweep on two cores in half the time.",
        "",
        "Times are those of one core, at the paper scale of one GPU. Those without ≈ are from the committed "
        "results: for each part of a run (data, forward, backward, …) the median over the runs of the same "
        "task and number of steps, times their number, so that a stalled run does not count; the machine was "
        "shared, and at times much slower than alone. "
        f"The others are reckoned from rows, tokens and parameters, for a GPU that "
        f"does {GPU / 1e12:.0f}·10¹² operations a second; methods that need several passes take longer.",
    ]
    return "\n".join(lines) + "\n"
