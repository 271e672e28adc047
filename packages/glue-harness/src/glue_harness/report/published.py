"""Published numbers beside ours, and whether ours reproduce them (the rules are in `verdict`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune_common.aliases import JsonObject, Settings
from glue_harness.config.matching import covers
from glue_harness.report.aggregate import model_name
from glue_harness.report.protocols import PROTOCOLS
from glue_harness.report.render import Cell, Table
from glue_harness.report.targets import Target

__all__ = [
    "Line",
    "Measurement",
    "compare",
    "interval",
    "measured",
    "table_of",
    "verdict",
]

LEVEL = 0.95
UNKNOWN, ELSEWHERE = "no published number", "not comparable at this scale"
COLUMNS = {
    **dict.fromkeys(("task", "model", "setting", "metric"), False),
    **dict.fromkeys(("published", "ours", "difference", "95 % interval"), True),
    "verdict": False,
}


@dataclass(frozen=True)
class Measurement:
    """A run's numbers.

    Attributes:
        settings: Its settings.
        seed: None if the result is not from a single seed.
        metrics: Name → number.
        primary: The metric that decides among runs; empty for the requested metric.
        folder: The folder of a run in its sweep; empty for a script's.
    """

    settings: Settings
    seed: int | None
    metrics: Mapping[str, float]
    primary: str = ""
    folder: str = ""


def measured(results: Iterable[JsonObject], evaluation: str) -> list[Measurement]:
    """Return what runs of a sweep measured: metrics, `seconds_per_step` and `saved_activation_bytes`."""
    measurements = []
    for result in results:
        seconds = sum(spent for part, spent in result["seconds"].items() if part != "evaluation")
        extra = {
            "seconds_per_step": seconds / max(result["steps"], 1),
            "saved_activation_bytes": result["saved_activation_bytes"],
        }
        settings = {**result["settings"], "task": result["task"], "model": result["model"], **result["slots"]}
        numbers = {**result["metrics"][evaluation], **extra}
        measurements.append(
            Measurement(settings, result["seed"], numbers, result["primary"], result["folder"])
        )
    return measurements


def interval(
    values: Sequence[float], center: float, published_runs: float, median: bool
) -> tuple[float, float] | None:
    """Return the interval that holds a repetition's number in 95 % of all cases; None with a single run.

        center ± t(n - 1) · s · sqrt(c · (1/n + 1/m))

    s is the standard deviation of our n runs. m is the number of runs behind the published number, which
    varies as much as ours. c is 1 for a mean and π/2 for a median, whose variance is that much larger.

    Args:
        values: One per seed.
        center: The protocol's number for them.
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
    from scipy.stats import t as student

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
    """Say whether a published number was reproduced; the first rule that applies decides.

    Without a published number there is no verdict. A number is not comparable at a scale with other models,
    data or budgets than published, or if a note says so. One that was not run, or run only once, is not
    judged. It is reproduced if it lies in our interval, widened by the error of reading it off a figure.

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
    """A line of the comparison, in the published unit if there is one."""

    task: str
    model: str
    setting: str
    metric: str
    published: float | None
    ours: float | None
    interval: tuple[float, float] | None
    verdict: str


def _number(runs: Sequence[Measurement], key: str, protocol: str) -> tuple[float | None, list[float]]:
    """Return the protocol's number for runs, and the number of each seed."""
    by_seed: dict[int | None, list[Mapping[str, float]]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(run.metrics)
    if not by_seed:
        return None, []
    how, primary = PROTOCOLS[protocol], runs[0].primary or key
    seeds = [how.within(of_seed, primary) for of_seed in by_seed.values()]
    return how.over(seeds, primary)[key], [seed[key] for seed in seeds]


def _model(target: Target, runs: Sequence[Measurement]) -> str:
    """Name the published model, and ours in brackets if it differs."""
    published = target.run.get("model")
    others = {run.settings["model"] for run in runs if published and run.settings["model"] != published}
    return f"{target.model} (ours: {', '.join(sorted(map(model_name, others)))})" if others else target.model


def compare(
    targets: Iterable[Target],
    measurements: Sequence[Measurement],
    protocol: str = "mean",
    published_runs: float = 1,
    *,
    as_published: bool = True,
    hindrance: Callable[[Target], str] = lambda target: "",
) -> tuple[list[Line], set[str]]:
    """Set published numbers beside ours.

    If our settings differ from the published ones, a number is compared with our setting that differs only in
    the model, the epochs and the learning rate.

    Args:
        targets: The published numbers.
        measurements: Ours.
        protocol: How runs become one number, one of `PROTOCOLS`.
        published_runs: How many runs are behind a published number.
        as_published: Whether our runs have the published settings.
        hindrance: Returns why a number cannot be judged; empty if it can.

    Returns:
        A line for each number, and the folders of the runs compared with one.
    """
    lines, folders = [], set()
    for target in targets:
        pattern = dict(target.run)
        if not as_published:
            pattern = {key: value for key, value in pattern.items() if key not in ("model", "epochs")}
            if isinstance(chosen := pattern.get("optimizer"), Mapping):
                pattern["optimizer"] = {k: v for k, v in chosen.items() if k != "lr"}
        matched = [run for run in measurements if target.key in run.metrics and covers(pattern, run.settings)]
        if not target.key or not (matched or as_published):
            continue
        folders |= {run.folder for run in matched}
        ours, values = _number(matched, target.key, protocol)
        around, published = None, target.value if target.verified else None
        if ours is not None:
            ours, values = ours * target.times, [value * target.times for value in values]
            runs = published_runs if as_published else math.inf
            around = interval(values, ours, runs, protocol == "median")
        outcome = verdict(
            published,
            ours,
            around,
            reading=target.reading,
            comparable=as_published,
            note=target.note or (hindrance(target) if as_published else ""),
        )
        setting = f"{target.method}, layer {target.layer}" if target.layer else target.method
        shown = (target.task, _model(target, matched), setting, target.metric)
        lines.append(Line(*shown, published, ours, around, outcome))
    return lines, folders


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:,.2f}"


def table_of(lines: Sequence[Line], notes: Sequence[str] = ()) -> Table:
    """Return the comparison as a table."""
    rows = []
    for line in lines:
        gap = None if line.ours is None or line.published is None else line.ours - line.published
        around = "–" if line.interval is None else " to ".join(map(_shown, line.interval))
        difference = "–" if gap is None or line.verdict.startswith("not comp") else f"{gap:+.4f}"
        names = (line.task, line.model, line.setting, line.metric)
        numbers = (_shown(line.published), _shown(line.ours), difference, around)
        rows.append([Cell(text) for text in (*names, *numbers, line.verdict)])
    return Table("published and ours", COLUMNS, rows, notes)
