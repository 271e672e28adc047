"""The published numbers of the works, and ours beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from glue_harness.report.protocols import EVALUATIONS, PROTOCOLS
from glue_harness.report.published import Line, Measurement, compare, measured, table_of
from glue_harness.report.render import as_markdown
from glue_harness.report.targets import Target, read_targets
from reproduce.catalogue import BENCHMARKS, Benchmark, catalogue
from reproduce.conformance import differences, hindrance

__all__ = ["comparison", "judged", "table", "targets"]


@cache
def targets(work: str) -> tuple[Target, ...]:
    """Return what a work published; nothing for our own benchmarks."""
    path = BENCHMARKS / work / "targets.csv"
    return read_targets(path) if path.exists() else ()


def judged() -> dict[str, Counter[str]]:
    """Return for each benchmark why the paper scale does not judge published numbers; empty: it does."""
    counts = {}
    for benchmark in catalogue().values():
        published = [
            t for t in targets(benchmark.work) if t.benchmark == benchmark.name and t.value is not None
        ]
        told = ("" if t.verified else "not verified at its source" for t in published)
        reasons = (
            why or t.note or hindrance(benchmark, t.run) for why, t in zip(told, published, strict=True)
        )
        counts[benchmark.name] = Counter(reason.partition(";")[0] for reason in reasons)
    return counts


def _quadratic(result: Any) -> Iterator[Measurement]:
    spec = result["spec"]
    for name, (_, median, _) in result["grid"].items():
        for place, gamma in enumerate(spec["step_sizes"]):
            settings = {**spec, "variants": {name: spec["variants"][name]}, "step_sizes": gamma}
            yield Measurement(settings, None, {"squared_distance": 2 * median[-1][place]})


def _images(result: Any) -> Iterator[Measurement]:
    spec = result["spec"]
    for way, runs in result["runs"].items():
        for seed, run in runs.items():
            settings = {**spec, "ways": {way: spec["ways"][way]}, "tails": {}}
            told = {key: run[key][-1] for key in ("accuracy", "accuracy_of_batches") if run.get(key)}
            yield Measurement(settings, int(seed), told)
            for epoch, sample in run["tails"].items():
                tails = {**spec["tails"], "ways": way, "epochs": int(epoch)}
                numbers = {key: sample[key] for key in ("mean", "sd", "rho_mild", "rho_extreme", "hill")}
                yield Measurement({**settings, "tails": tails}, int(seed), numbers)


def _capacity(result: Any) -> Iterator[Measurement]:
    spec = result["spec"]
    for row in result["rows"]:
        name = row["activations"]
        same = {"models": row["model"], "activations": {name: spec["activations"][name]}}
        what = {key: row[key] for key in ("searches", "throughput_at") if key in row}
        numbers = {key: row[key] for key in ("largest", "sequences_per_second") if row.get(key) is not None}
        apart = {"searches": None, "throughput_at": None}
        yield Measurement({**spec, **apart, **same, **what}, None, numbers)


SCRIPTS: dict[str, tuple[Callable[[Any], Iterator[Measurement]], str]] = {
    "quadratic": (_quadratic, "median over the repeats of one seed"),
    "images": (_images, ""),
    "capacity": (_capacity, "one measurement each; a speed is the median of its rounds"),
}
"""Script → how its `result.json` is read, and how numbers that are not of several seeds are made."""


def _as_published(benchmark: Benchmark, scale: str) -> bool:
    return "paper" in benchmark.scales and benchmark.spec(scale) == benchmark.spec("paper")


def comparison(benchmark: Benchmark, scale: str, results: Any) -> list[Line]:
    """Compare what the kept JSON of a scale holds with what was published."""
    published = [target for target in targets(benchmark.work) if target.benchmark == benchmark.name]
    if not published:
        return []
    if benchmark.script:
        read, _ = SCRIPTS.get(benchmark.script.stem, (lambda result: iter(()), ""))
        measurements = list(read(results))
    else:
        measurements = measured(results, benchmark.evaluation)
    lines, _ = compare(
        published,
        measurements,
        benchmark.protocol,
        benchmark.published_runs,
        as_published=_as_published(benchmark, scale),
        hindrance=lambda target: hindrance(benchmark, target.run),
    )
    return lines


def _footnote(lines: list[Line], benchmark: Benchmark, scale: str) -> str:
    """Return how the numbers of a comparison, and their intervals, are made."""
    several = any(line.interval for line in lines)
    _, once = SCRIPTS.get(benchmark.script.stem if benchmark.script else "", (None, ""))
    sentences = [once or (PROTOCOLS[benchmark.protocol].meaning if several else "one run each")]
    if not benchmark.script:
        sentences.append(EVALUATIONS[benchmark.evaluation])
    if several and _as_published(benchmark, scale):
        runs = f"as many runs as are behind the published number ({benchmark.published_runs})"
        sentences.append(f"95 % interval of a repetition with {runs}")
    elif several:
        sentences.append("95 % interval of our number")
    told = f"Ours: {'; '.join(sentences)}."
    if scale == "paper" and (names := ", ".join(differences(benchmark))):
        told += f" Differs from the released code in: {names}; the page of benchmarks says why."
    return told


def table(benchmark: Benchmark, scale: str, results: Any) -> str:
    """Return the comparison as markdown, and how its numbers are made; nothing without targets."""
    lines = comparison(benchmark, scale, results)
    return f"{as_markdown(table_of(lines))}\n{_footnote(lines, benchmark, scale)}\n" if lines else ""
