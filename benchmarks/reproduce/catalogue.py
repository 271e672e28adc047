"""The benchmarks: `catalogue.yaml` in the folder of each work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from finetune_common.errors import ConfigurationError, did_you_mean
from glue_harness.sweep.scales import SMOKE
from reproduce.scales import changed, merged, read

__all__ = ["BENCHMARKS", "SCALES", "Benchmark", "Scale", "catalogue", "find"]

BENCHMARKS = Path(__file__).parent.parent
SCALES = ("smoke", "cpu", "paper")
"""`smoke` needs nothing and shows that it runs; `cpu` needs a model folder and the data; `paper` a GPU and
the published models."""


@dataclass(frozen=True)
class Scale:
    """A benchmark at a scale.

    Attributes:
        results: Name of the results, a file (sweep) or a folder (script) in the work's `results/`.
        spec: The file that is changed, None for a script without one.
        change: What this scale changes in it.
        minutes: Estimate of a script; those of sweeps are computed.
        gpu_memory: GB that a GPU needs, at the paper scale.
    """

    results: str
    spec: Path | None = None
    change: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = None
    gpu_memory: int = 16


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A table or figure of a work.

    Attributes:
        name: `work.benchmark`.
        title: What it compares.
        scales: Name → scale.
        published: Which table or figure it belongs to; empty for one of our own.
        protocol: How runs become one number, as in `glue-harness report --protocol`.
        evaluation: `last` or `best`.
        published_runs: How many runs are behind a published number.
        script: What runs it; None for a sweep.
        analysis: A script that looks at the finished sweep.
        baseline: Which setting the others are compared with, seed by seed, as in `glue-harness report
            --baseline`; empty for no such table.
        margin: The smallest difference from the baseline that matters, fixed before the runs; None if nothing
            can be called equal.
        costs: Which benchmark times a step of the same settings; memory and time are then told beside the
            scores. Empty for no such table.
        report: Whether the documentation shows the report of its results.
        differs: What differs from the released code, name → why. Where that forbids a comparison it is a
            mapping: `matters` says why, and `of` of which runs, all by default.
    """

    name: str
    title: str
    scales: Mapping[str, Scale]
    published: str = ""
    protocol: str = "mean"
    evaluation: str = "last"
    published_runs: int = 1
    script: Path | None = None
    analysis: Path | None = None
    baseline: str = ""
    margin: float | None = None
    costs: str = ""
    report: bool = False
    differs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def work(self) -> str:
        """The work that it is of."""
        return self.name.partition(".")[0]

    @property
    def folder(self) -> Path:
        """The folder of the work."""
        return BENCHMARKS / self.work

    def at(self, scale: str) -> Scale:
        """Return the scale of that name, or refuse one that the benchmark has not."""
        if scale not in self.scales:
            raise ConfigurationError(
                f"--scale {scale}: {self.name} has none; it has {', '.join(self.scales)}"
            )
        return self.scales[scale]

    def spec(self, scale: str) -> dict[str, Any]:
        """Return the specification at a scale; at the paper's, and for an analysis, all models are kept."""
        chosen = self.at(scale)
        written = read(chosen.spec) if chosen.spec else {}
        if self.script:
            return merged(written, chosen.change)
        kept = {"keep": "all"} if scale == "paper" or self.analysis is not None else {}
        return kept | changed(written, chosen.change)

    def kept(self, scale: str) -> Path:
        """Return where the results of a scale are kept: the JSON file."""
        folder, name = self.folder / "results", self.at(scale).results
        return folder / name / "result.json" if self.script else folder / f"{name}.json"


def _scale(folder: Path, results: str, described: Mapping[str, Any], smoke: bool) -> Scale:
    apart = {key: described[key] for key in ("results", "minutes", "gpu_memory") if key in described}
    change = {key: value for key, value in described.items() if key not in (*apart, "spec")}
    spec = folder / described["spec"] if "spec" in described else None
    return Scale(
        **{"results": results, **apart}, spec=spec, change=merged(SMOKE, change) if smoke else change
    )


def _benchmark(folder: Path, name: str, described: Mapping[str, Any]) -> Benchmark:
    scales = {scale: described[scale] for scale in SCALES if scale in described}
    if "script" not in described:
        largest = scales.get("paper") or scales["cpu"]
        scales = {"smoke": {"spec": largest["spec"]}} | scales
    options = {key: value for key, value in described.items() if key not in SCALES}
    options |= {key: folder / options[key] for key in ("script", "analysis") if key in options}
    made = {
        scale: _scale(folder, f"{name}-{scale}", entry, scale == "smoke" and "script" not in described)
        for scale, entry in scales.items()
    }
    return Benchmark(name=f"{folder.name}.{name}", scales=made, **options)


@cache
def catalogue() -> Mapping[str, Benchmark]:
    """Return all benchmarks by name."""
    benchmarks = [
        _benchmark(path.parent, name, described)
        for path in sorted(BENCHMARKS.glob("*/catalogue.yaml"))
        for name, described in read(path).items()
    ]
    return {benchmark.name: benchmark for benchmark in benchmarks}


def find(name: str) -> Benchmark:
    """Return the benchmark of that name, or refuse a name of none."""
    known = catalogue()
    if name not in known:
        raise ConfigurationError(f"benchmark {name!r} is unknown: {did_you_mean(name, known)}")
    return known[name]
