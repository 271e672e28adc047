"""Run benchmarks, or continue them, and compare what comes out with what was published.

    nox -s benchmark -- --list
    nox -s benchmark -- sage.sst2 --scale cpu --jobs 2 GLUE_DATA_DIR=…
    nox -s benchmark -- gact.accuracy --scale paper
    nox -s benchmark -- speed

A name stands for one benchmark, a work for all of its own, `all` for all. Runs are kept in `runs/benchmarks`;
started again, what is finished is not repeated. One that fails does not stop the others. Results of the cpu
and paper scales go to the work's `results/`, with their tables. NAME=DIR says where a model or the data are,
as the specifications name them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import collect
from finetune_common.errors import ConfigurationError
from glue_harness.run.records import write_whole
from glue_harness.sweep.spec import read_spec
from reproduce.catalogue import SCALES, Benchmark, Scale, catalogue, find
from reproduce.commands import CommandError, command
from reproduce.estimates import estimate
from reproduce.listing import listing
from reproduce.preflight import preflight
from reproduce.scales import read
from reproduce.speed import speed


def chosen(names: Sequence[str], scale: str) -> list[Benchmark]:
    """Return the benchmarks that names stand for, those without the scale left out of a work.

    Raises:
        ConfigurationError: A name of none, or of one without the scale.
    """
    found: list[Benchmark] = []
    for name in names:
        several = [b for b in catalogue().values() if name in ("all", b.work) and scale in b.scales]
        found += several or [find(name)]
    for benchmark in found:
        benchmark.at(scale)
    return list({benchmark.name: benchmark for benchmark in found}.values())


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


def perform_all(benchmarks: Sequence[Benchmark], scale: str, output: Path, jobs: int) -> bool:
    """Run benchmarks, each whatever becomes of the others, and make the tables; returns whether all ran."""
    failed = 0
    for benchmark in benchmarks:
        try:
            print(perform(benchmark, scale, output, jobs), flush=True)
        except (ConfigurationError, CommandError) as error:
            failed += 1
            print(f"benchmark: error: {benchmark.name}: {error}; the same command continues", file=sys.stderr)
    if scale != "smoke" and failed < len(benchmarks):
        for path, text in (collect.tables() | collect.pages()).items():
            write_whole(path, text)
    return not failed


def _variables(words: Sequence[str]) -> list[str]:
    """Put NAME=DIR into the environment, and return the other words."""
    names = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            if not Path(value).is_dir():
                raise ConfigurationError(f"{word}: no such folder; give the folder of a model or of data")
            os.environ[name] = str(Path(value).resolve())
        else:
            names.append(word)
    return names


def _main(argv: Sequence[str] | None) -> bool:
    """Do what a command line says; returns whether nothing failed."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written, prog="benchmark")
    parser.add_argument("names", nargs="*", metavar="NAME", help="work.benchmark, a work, all, or speed")
    parser.add_argument("--list", action="store_true", help="show all with their estimated times")
    parser.add_argument("--scale", choices=SCALES, default="smoke", help="how large (smoke)")
    parser.add_argument("--jobs", type=int, default=1, help="processes of a sweep (1); 0: in this process")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/benchmarks"), help="folder of the runs")
    options = parser.parse_intermixed_args(argv)
    names = _variables(options.names)
    if options.list:
        print(listing())
        return True
    if names == ["speed"]:
        return speed(options.output_dir / "speed")
    if names:
        wanted = chosen(names, options.scale)
        return perform_all(wanted, options.scale, options.output_dir, options.jobs)
    raise ConfigurationError("no benchmark is named: --list shows all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns 1 where something failed, 2 where the line cannot be done."""
    try:
        return 0 if _main(argv) else 1
    except ConfigurationError as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
