"""What kept results hold, in one form: settings, seed and numbers of each run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from glue_harness.report.published import Measurement, measured
from reproduce.catalogue import Benchmark

__all__ = ["ONCE", "measurements"]


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


SCRIPTS: dict[str, Callable[[Any], Iterator[Measurement]]] = {
    "quadratic": _quadratic,
    "images": _images,
    "capacity": _capacity,
}
"""Script → how its `result.json` is read; the others are about no published number."""

ONCE = {
    "quadratic": "median over the repeats of one seed",
    "capacity": "one measurement each; a speed is the median of its rounds",
}
"""Script whose numbers are not of several seeds → how they are made."""


def measurements(benchmark: Benchmark, results: Any) -> list[Measurement]:
    """Return the runs of kept results."""
    if benchmark.script is None:
        return measured(results, benchmark.evaluation)
    reader = SCRIPTS.get(benchmark.script.stem)
    return list(reader(results)) if reader else []
