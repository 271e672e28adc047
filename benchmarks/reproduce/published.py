"""The published numbers of the works, and ours beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from glue_harness.report.aggregate import model_name, summarise
from glue_harness.report.protocols import EVALUATIONS, PROTOCOLS
from glue_harness.report.published import Line, compare, interval, table_of, verdict
from glue_harness.report.render import as_markdown
from glue_harness.report.targets import Target, read_targets
from reproduce.catalogue import BENCHMARKS, Benchmark, catalogue
from reproduce.conformance import differences, hindrance
from reproduce.measurements import ONCE, measurements

__all__ = ["comparison", "footnote", "judged", "table", "targets"]


@cache
def targets(work: str) -> tuple[Target, ...]:
    """Return what a work published; nothing for our own benchmarks."""
    path = BENCHMARKS / work / "targets.csv"
    return read_targets(path) if path.exists() else ()


def judged() -> dict[str, tuple[int, int]]:
    """Return for each benchmark how many published numbers the paper scale judges, and how many not."""
    found = {}
    for benchmark in catalogue().values():
        own = [t for t in targets(benchmark.work) if t.benchmark == benchmark.name and t.value is not None]
        yes = sum(t.verified and not t.note and not hindrance(benchmark, t.run) for t in own)
        found[benchmark.name] = yes, len(own) - yes
    return found


def _own(
    benchmark: Benchmark,
    results: Sequence[Mapping[str, Any]],
    told: set[str],
    units: Mapping[str, tuple[str, float]],
) -> list[Line]:
    """Return a line for each of our settings that no published number is beside, in the published unit."""
    lines = []
    for row in summarise(results, benchmark.protocol, evaluation=benchmark.evaluation):
        if told.isdisjoint(row.runs):
            metric, times = units.get(row.primary, (row.primary.replace("_", " "), 1.0))
            values = [times * value for value in row.seed_scores(benchmark.evaluation).values()]
            ours = times * row.score(benchmark.evaluation)[0]
            around = interval(values, ours, math.inf, benchmark.protocol == "median")
            shown = (row.task, model_name(row.model), row.setting, metric)
            lines.append(Line(*shown, None, ours, around, verdict(None, ours, around)))
    return lines


def _comparable(benchmark: Benchmark, scale: str) -> bool:
    return "paper" in benchmark.scales and benchmark.spec(scale) == benchmark.spec("paper")


def comparison(benchmark: Benchmark, scale: str, results: Any) -> list[Line]:
    """Compare kept results with what was published.

    Args:
        benchmark: The benchmark.
        scale: Which scale the results are of.
        results: What the kept JSON holds.
    """
    own = [t for t in targets(benchmark.work) if t.benchmark == benchmark.name]
    lines, told = compare(
        own,
        measurements(benchmark, results),
        benchmark.protocol,
        benchmark.published_runs,
        as_published=_comparable(benchmark, scale),
        hindrance=lambda target: hindrance(benchmark, target.run),
    )
    if benchmark.script:
        return lines
    return lines + _own(benchmark, results, told, {t.key: (t.metric, t.times) for t in own})


def table(lines: Sequence[Line]) -> str:
    """Return the comparison as a markdown table."""
    return as_markdown(table_of(lines))


def footnote(lines: Sequence[Line], benchmark: Benchmark, scale: str) -> str:
    """Return how the numbers of a comparison, and their intervals, are made."""
    several = any(line.interval for line in lines)
    name = benchmark.script.stem if benchmark.script else ""
    said = [ONCE.get(name) or (PROTOCOLS[benchmark.protocol].said if several else "one run each")]
    if not benchmark.script:
        said.append(EVALUATIONS[benchmark.evaluation])
    if several and _comparable(benchmark, scale):
        said.append(
            "95 % interval of a repetition with as many runs as are behind the published number "
            f"({benchmark.published_runs})"
        )
    elif several:
        said.append("95 % interval of our number")
    told = f"Ours: {'; '.join(said)}."
    if scale == "paper" and (names := ", ".join(differences(benchmark))):
        told += f" Differs from the released code in: {names}; the page of benchmarks says why."
    return told
