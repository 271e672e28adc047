"""What was published, what came out here, and whether that is a reproduction: the rules are in `verdict`."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from scipy.stats import t as student

from glue_harness.report.aggregate import model_name, summarise
from glue_harness.report.protocols import EVALUATIONS, PROTOCOLS
from reproduce.catalogue import BENCHMARKS, Benchmark
from reproduce.measurements import ONCE, Measurement, measurements
from reproduce.scales import covers

__all__ = ["Line", "Target", "comparison", "footnote", "interval", "table", "targets", "verdict"]

LEVEL = 0.95
UNKNOWN, ELSEWHERE = "no published number", "not comparable at this scale"
COLUMNS = ("task", "model", "setting", "metric", "published", "ours", "difference", "interval", "verdict")


@dataclass(frozen=True)
class Target:
    """A row of `targets.csv`.

    Attributes:
        table: The published table or figure.
        method: The setting, as published.
        model: The model, as published.
        task: The task, as published.
        layer: The layer, where the figure has one axis of them.
        metric: The metric, as published.
        value: The number; None where it is not known.
        reading: How far off the number may be, read off a figure.
        source: Where it is from.
        verified: Whether it was read there.
        benchmark: Which of ours would produce it; empty for none, and `note` says why.
        run: Settings of the run that would.
        key: The metric of ours.
        times: What turns our unit into the published one.
        note: Why it is not judged; empty where it is.
    """

    table: str
    method: str
    model: str
    task: str
    layer: str
    metric: str
    value: float | None
    reading: float
    source: str
    verified: bool
    benchmark: str
    run: Mapping[str, Any]
    key: str
    times: float
    note: str


def _target(row: Mapping[str, str]) -> Target:
    return Target(
        **{key: row[key] for key in ("table", "method", "model", "task", "layer", "metric", "source")},
        value=float(row["value"]) if row["value"] else None,
        reading=float(row["reading"] or 0),
        verified=row["verified"] == "True",
        benchmark=row["benchmark"],
        run=yaml.safe_load(row["run"]) or {},
        key=row["key"],
        times=float(row["times"] or 1),
        note=row["note"],
    )


@cache
def targets(work: str) -> tuple[Target, ...]:
    """Return what a work published; nothing for our own benchmarks."""
    path = BENCHMARKS / work / "targets.csv"
    if not path.exists():
        return ()
    with path.open(encoding="utf-8", newline="") as file:
        return tuple(_target(row) for row in csv.DictReader(file))


def interval(values: Sequence[float], center: float, published_runs: float, median: bool) -> Any:
    """Return where the number of a repetition would lie in 95 % of all cases, None with a single run.

        center ± t(n - 1) · s · sqrt(c · (1/n + 1/m))

    s is the standard deviation of our n runs and m how many runs are behind the published number, which is
    no more exact than ours. c is 1 for a mean and π/2 for a median, whose spread is that much larger.

    Args:
        values: One a seed.
        center: What the protocol makes of them.
        published_runs: m; ∞ gives the interval of our own number.
        median: Whether the protocol is the median.

    Examples:
        >>> low, high = interval([0.80, 0.82, 0.84], 0.82, math.inf, median=False)
        >>> round(low, 4), round(high, 4)
        (0.7703, 0.8697)
    """
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    wider = math.pi / 2 if median and n > 2 else 1.0
    quantile = float(student.ppf((1 + LEVEL) / 2, n - 1))
    half = quantile * spread * math.sqrt(wider * (1 / n + 1 / published_runs))
    return center - half, center + half


def verdict(
    published: float | None,
    ours: float | None,
    around: tuple[float, float] | None,
    *,
    reading: float = 0.0,
    comparable: bool = True,
    note: str = "",
) -> str:
    """Say whether a published number was reproduced: all rules, the first that applies.

    Without a published number there is nothing to say. At a scale with other models, data or budgets than
    the published ones a number is not comparable, and neither is one that a note says not to be. One that
    was not run, or only once, is not judged. It is reproduced if it lies in the interval of ours, which is
    widened by the error of reading it off a figure.

    Args:
        published: The published number.
        ours: Our number.
        around: The interval of `interval`.
        reading: Error of reading the published number.
        comparable: Whether the scale has the published settings.
        note: Why the number cannot be compared.

    Examples:
        >>> verdict(0.90, 0.91, (0.89, 0.93)), verdict(0.95, 0.91, (0.89, 0.93))
        ('reproduced', 'not reproduced')
        >>> verdict(0.90, 0.70, (0.69, 0.71), comparable=False)
        'not comparable at this scale'
    """
    if published is None:
        return UNKNOWN
    if not comparable:
        return ELSEWHERE
    if note:
        return f"not comparable: {note}"
    if ours is None:
        return "not run"
    if around is None:
        return "one run: not judged"
    inside = around[0] - reading <= published <= around[1] + reading
    return "reproduced" if inside else "not reproduced"


@dataclass(frozen=True)
class Line:
    """A line of the comparison, in the published unit where there is one."""

    task: str
    model: str
    setting: str
    metric: str
    published: float | None
    ours: float | None
    interval: tuple[float, float] | None
    verdict: str


def _number(found: Sequence[Measurement], key: str, protocol: str) -> tuple[float | None, list[float]]:
    """Return what a protocol makes of runs, and the number of each seed."""
    by_seed: dict[Any, list[Mapping[str, float]]] = {}
    for one in found:
        by_seed.setdefault(one.seed, []).append(one.metrics)
    if not by_seed:
        return None, []
    how, primary = PROTOCOLS[protocol], found[0].primary or key
    seeds = [how.within(runs, primary) for runs in by_seed.values()]
    return how.over(seeds, primary)[key], [seed[key] for seed in seeds]


def _model(target: Target, found: Sequence[Measurement]) -> str:
    """Name the published model, and in brackets ours where it is another."""
    published = target.run.get("model")
    others = {one.settings["model"] for one in found if published and one.settings["model"] != published}
    return f"{target.model} (ours: {', '.join(sorted(map(model_name, others)))})" if others else target.model


def _against(target: Target, benchmark: Benchmark, found: Sequence[Measurement], comparable: bool) -> Line:
    ours, values = _number(found, target.key, benchmark.protocol)
    around, published = None, target.value if target.verified else None
    if ours is not None:
        ours, values = ours * target.times, [value * target.times for value in values]
        runs = benchmark.published_runs if comparable else math.inf
        around = interval(values, ours, runs, benchmark.protocol == "median")
    told = verdict(published, ours, around, reading=target.reading, comparable=comparable, note=target.note)
    setting = f"{target.method}, layer {target.layer}" if target.layer else target.method
    return Line(target.task, _model(target, found), setting, target.metric, published, ours, around, told)


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

    Where the scale has not the published settings, a published number stands beside the setting of ours
    that is the same but for the model, the epochs and the learning rate.

    Args:
        benchmark: The benchmark.
        scale: Which scale the results are of.
        results: What the kept JSON holds.
    """
    own = [t for t in targets(benchmark.work) if t.benchmark == benchmark.name]
    found = measurements(benchmark, results)
    comparable = _comparable(benchmark, scale)
    lines: list[Line] = []
    told: set[str] = set()
    for target in own:
        pattern = dict(target.run)
        if not comparable:
            pattern = {key: value for key, value in pattern.items() if key not in ("model", "epochs")}
            if "optimizer" in pattern:
                pattern["optimizer"] = {k: v for k, v in pattern["optimizer"].items() if k != "lr"}
        matched = [one for one in found if target.key in one.metrics and covers(pattern, one.settings)]
        if target.key and (matched or comparable):
            lines.append(_against(target, benchmark, matched, comparable))
            told |= {one.folder for one in matched}
    if benchmark.script:
        return lines
    return lines + _own(benchmark, results, told, {t.key: (t.metric, t.times) for t in own})


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def table(lines: Sequence[Line]) -> str:
    """Return the comparison as a markdown table."""
    rows = [f"| {' | '.join(COLUMNS).replace('interval', '95 % interval')} |", "| --- " * 4 + "| ---: " * 4]
    rows[1] += "| --- |"
    for line in lines:
        gap = None if line.ours is None or line.published is None else line.ours - line.published
        around = "–" if line.interval is None else " to ".join(map(_shown, line.interval))
        difference = "–" if gap is None or line.verdict.startswith("not comp") else f"{gap:+.4f}"
        told = (line.task, line.model, line.setting, line.metric)
        numbers = (_shown(line.published), _shown(line.ours), difference, around)
        rows.append(f"| {' | '.join((*told, *numbers, line.verdict))} |")
    return "\n".join(rows) + "\n"


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
    return f"Ours: {'; '.join(said)}."
