"""One benchmark at one scale: its runs, its results, and what they are compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import collect
from glue_harness.run.records import write_whole
from glue_harness.sweep.spec import read_spec
from reproduce.catalogue import Benchmark, Scale
from reproduce.commands import command
from reproduce.estimates import estimate
from reproduce.preflight import preflight
from reproduce.scales import read

__all__ = ["perform", "same_numbers"]


def spec_file(benchmark: Benchmark, scale: Scale, folder: Path) -> Path:
    """Return the file of a scale's specification; one that the scale changes is written."""
    if scale.spec is not None and benchmark.spec(scale.name) == read(scale.spec):
        return scale.spec
    path = folder / "spec.yaml"
    write_whole(path, yaml.safe_dump(benchmark.spec(scale.name), sort_keys=False, allow_unicode=True))
    return path


def run_script(benchmark: Benchmark, scale: Scale, folder: Path) -> None:
    """Run a script: with the scale's specification, or with its options where it has none."""
    assert benchmark.script is not None
    if scale.spec is None:
        options = [word for key, value in scale.change.items() for word in (f"--{key}", str(value))]
    else:
        options = ["--spec", str(spec_file(benchmark, scale, folder))]
    command(benchmark.script, *options, "--output-dir", folder / "results")


def threads(committed: Path, jobs: int) -> dict[str, str]:
    """Return what gives each run the threads that the committed ones had: the order of sums depends on it."""
    if not committed.exists():
        return {}
    machine = json.loads(committed.read_text(encoding="utf-8"))[0]["hardware"]
    return {"OMP_NUM_THREADS": str(machine["threads"] * jobs)} if machine["device"] == "cpu" else {}


def run_sweep(benchmark: Benchmark, scale: Scale, folder: Path, jobs: int) -> None:
    """Do the runs of a sweep: by worker processes, or without any in this one."""
    spec = spec_file(benchmark, scale, folder)
    if jobs:
        words = ("-m", "glue_harness", "sweep", spec, "--output-dir", folder / "runs", "--jobs", str(jobs))
        command(*words, **threads(benchmark.kept(scale.name), jobs))
    else:
        from glue_harness.run.entry import run

        for planned in read_spec(spec, folder / "runs"):
            run(planned.config)
    if benchmark.analysis:
        command(benchmark.analysis, folder / "runs", "--output-dir", folder / "analysis")


def _same_run(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Say whether two results are of one run; options that came later are in one of them only."""
    both = ours["settings"].keys() & theirs["settings"].keys()
    same_settings = all(ours["settings"][key] == theirs["settings"][key] for key in both)
    return same_settings and all(ours[key] == theirs[key] for key in ("task", "seed", "slots"))


def same_numbers(results: Sequence[dict[str, Any]], committed: Path) -> str:
    """Say how many runs have the numbers that they had before."""
    if not committed.exists():
        return "no committed results to compare with"
    before = json.loads(committed.read_text(encoding="utf-8"))
    same = sum(
        any(_same_run(one, old) and one["metrics"] == old["metrics"] for old in before) for one in results
    )
    return f"{same} of {len(results)} runs have the numbers of the committed results"


def keep_folder(source: Path, target: Path) -> None:
    """Copy what a script wrote: numbers, tables and figures."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".md", ".png"):
            shutil.copy(path, target / path.name)


def perform(benchmark: Benchmark, name: str, output: Path, jobs: int) -> str:
    """Run a benchmark at a scale, keep its results, and return its tables."""
    scale, folder = benchmark.at(name), output / benchmark.name / name
    of = "GPU" if name == "paper" else "core"
    print(f"{benchmark.name}, {name}: {benchmark.title}; {estimate(benchmark, name)} of one {of}", flush=True)
    if name == "paper":
        preflight(benchmark, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = benchmark.kept(name) if name != "smoke" else folder / "results" / "result.json"
    if benchmark.script:
        run_script(benchmark, scale, folder)
        results = json.loads((folder / "results" / "result.json").read_text(encoding="utf-8"))
        if name != "smoke":
            keep_folder(folder / "results", kept.parent)
        return collect.published_table(benchmark, name, results)
    run_sweep(benchmark, scale, folder, jobs)
    results = collect.kept(folder / "runs")
    if name != "smoke":
        print(same_numbers(results, kept))
    if benchmark.analysis and name != "smoke":
        keep_folder(folder / "analysis", kept.with_suffix(""))
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_whole(kept, json.dumps(results, indent=1) + "\n")
    told = collect.published_table(benchmark, name, results)
    return f"{collect.costs_table(benchmark, name, results)}\n{told}" if benchmark.costs else told
