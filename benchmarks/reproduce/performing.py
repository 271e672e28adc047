"""One benchmark at one scale: its runs, its results, and what they are compared with."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

import collect
from finetune_common.errors import ConfigurationError
from glue_harness.run.entry import run
from glue_harness.run.records import write_whole
from glue_harness.sweep import sweep
from glue_harness.sweep.spec import read_spec
from reproduce.catalogue import Benchmark
from reproduce.listing import estimate, shown
from reproduce.preflight import preflight

__all__ = ["command", "foresee", "perform", "same_numbers"]


def command(*words: str | Path) -> None:
    """Run a script with its options in a process of its own; one that fails has told why."""
    if status := subprocess.call([sys.executable, *map(str, words)]):
        raise ConfigurationError(f"failed with exit status {status}, see above")


def _spec_file(benchmark: Benchmark, scale: str, folder: Path) -> Path:
    """Write a scale's specification, and return its file; refuse one that names folders that nobody gave."""
    path = folder / "spec.yaml"
    text = yaml.safe_dump(benchmark.spec(scale), sort_keys=False, allow_unicode=True)
    if missing := sorted(set(re.findall(r"\$\{(\w+)\}", text)) - os.environ.keys()):
        raise ConfigurationError(
            f"it needs {' '.join(f'{name}=DIR' for name in missing)}: give it on the line"
        )
    write_whole(path, text)
    return path


def _run_script(benchmark: Benchmark, scale: str, folder: Path) -> None:
    """Run a script: with the scale's specification, or with its options where it has none."""
    assert benchmark.script is not None
    if benchmark.at(scale).spec is None:
        options = [word for key, value in benchmark.spec(scale).items() for word in (f"--{key}", str(value))]
    else:
        options = ["--spec", str(_spec_file(benchmark, scale, folder))]
    command(benchmark.script, *options, "--output-dir", folder / "results")


def _run_sweep(benchmark: Benchmark, scale: str, folder: Path, jobs: int) -> None:
    """Do the runs of a sweep: by worker processes, or without any in this one."""
    spec, committed = _spec_file(benchmark, scale, folder), benchmark.kept(scale)
    if jobs:
        if committed.exists():  # the order of sums, and so the numbers, depend on the threads of a run
            machine = json.loads(committed.read_text(encoding="utf-8"))[0]["hardware"]
            if machine["device"] == "cpu":
                os.environ["OMP_NUM_THREADS"] = str(machine["threads"] * jobs)
        sweep(spec, folder / "runs", jobs, dry_run=False)
    else:
        for planned in read_spec(spec, folder / "runs"):
            run(planned.config)
    if benchmark.analysis:
        command(benchmark.analysis, folder / "runs", "--output-dir", folder / "analysis")


def _same_run(result: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether two results are of one run; options that came later are in one of them only."""
    both = result["settings"].keys() & other["settings"].keys()
    same_settings = all(result["settings"][key] == other["settings"][key] for key in both)
    return same_settings and all(result[key] == other[key] for key in ("task", "seed", "slots"))


def same_numbers(results: Sequence[dict[str, Any]], committed: Path) -> str:
    """Say how many runs have the numbers that they had before."""
    if not committed.exists():
        return "no earlier results to compare with"
    before = json.loads(committed.read_text(encoding="utf-8"))
    same = sum(
        any(_same_run(one, old) and one["metrics"] == old["metrics"] for old in before) for one in results
    )
    return f"{same} of {len(results)} runs have the numbers of the results kept before"


def _keep_folder(source: Path, target: Path) -> None:
    """Copy what a script wrote: numbers, tables and figures."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".md", ".png"):
            shutil.copy(path, target / path.name)


def _announce(benchmark: Benchmark, scale: str) -> None:
    needed = f"{shown(*estimate(benchmark, scale))} of one {'GPU' if scale == 'paper' else 'core'}"
    print(f"{benchmark.name}, {scale}: {benchmark.title}; {needed}", flush=True)


def foresee(benchmark: Benchmark, scale: str, output: Path, jobs: int) -> None:
    """Print what a benchmark needs at a scale: hours, memory, disk; of a sweep also its runs."""
    _announce(benchmark, scale)
    if benchmark.script:
        memory = benchmark.at(scale).gpu_memory if scale == "paper" else 0
        print(f"a GPU of {memory} GB" if memory else "no GPU", "and less than 1 GB of disk", flush=True)
        return
    with TemporaryDirectory() as folder:
        spec = _spec_file(benchmark, scale, Path(folder))
        sweep(spec, output / benchmark.name / scale / "runs", max(jobs, 1), dry_run=True)


def perform(benchmark: Benchmark, scale: str, output: Path, jobs: int) -> str:
    """Run a benchmark at a scale, keep its results, and return its tables."""
    folder = output / benchmark.name / scale
    _announce(benchmark, scale)
    if scale == "paper":
        preflight(benchmark, folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = benchmark.kept(scale) if scale != "smoke" else folder / "results" / "result.json"
    if benchmark.script:
        _run_script(benchmark, scale, folder)
        if scale != "smoke":
            _keep_folder(folder / "results", kept.parent)
    else:
        _run_sweep(benchmark, scale, folder, jobs)
        if scale != "smoke":
            print(same_numbers(collect.kept(folder / "runs"), kept))
            if benchmark.analysis:
                _keep_folder(folder / "analysis", kept.with_suffix(""))
        collect.keep(folder / "runs", kept)
    return "\n".join(collect.tables_of(benchmark, scale, kept).values())
