"""Run benchmarks, or continue them, and compare what comes out with what was published.

    nox -s benchmark -- --list
    nox -s benchmark -- sage.sst2 --scale cpu --jobs 2 GLUE_DATA_DIR=…
    nox -s benchmark -- gact.accuracy --scale paper
    nox -s benchmark -- speed

A name stands for one benchmark, a work for all of its own, `all` for all. Runs are kept in `runs/benchmarks`;
started again, what is finished is not repeated. One that fails does not stop the others. Results of the cpu
and paper scales go to the work's `results/`, with their tables. NAME=DIR says where a model or the data are,
as the specifications name them. `--dry-run` says what it takes, and needs no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import collect
from finetune_common.errors import ConfigurationError
from glue_harness.run.records import write_whole
from reproduce.catalogue import SCALES, Benchmark, catalogue, find
from reproduce.commands import status_of
from reproduce.listing import listing
from reproduce.performing import foresee, perform
from reproduce.speed import speed


def chosen(names: Sequence[str], scale: str) -> list[Benchmark]:
    """Return the benchmarks that names stand for, those without the scale left out of a work.

    Raises:
        ConfigurationError: A name of none, or of one without the scale.
    """
    benchmarks: list[Benchmark] = []
    for name in names:
        several = [b for b in catalogue().values() if name in ("all", b.work) and scale in b.scales]
        benchmarks += several or [find(name)]
    for benchmark in benchmarks:
        benchmark.at(scale)
    return list({benchmark.name: benchmark for benchmark in benchmarks}.values())


def perform_all(benchmarks: Sequence[Benchmark], scale: str, output: Path, jobs: int) -> bool:
    """Run benchmarks, each whatever becomes of the others, and make the tables; returns whether all ran."""
    failed = 0
    for benchmark in benchmarks:
        try:
            print(perform(benchmark, scale, output, jobs), flush=True)
        except ConfigurationError as error:
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
    parser.add_argument("--dry-run", action="store_true", help="only print what it needs")
    options = parser.parse_intermixed_args(argv)
    names = _variables(options.names)
    if options.list:
        print(listing())
        return True
    if "speed" in names:
        if len(names) > 1:
            raise ConfigurationError("speed is measured alone: give no other name beside it")
        return speed(options.output_dir / "speed")
    if names:
        wanted = chosen(names, options.scale)
        if options.dry_run:
            for benchmark in wanted:
                foresee(benchmark, options.scale, options.output_dir, options.jobs)
            return True
        return perform_all(wanted, options.scale, options.output_dir, options.jobs)
    raise ConfigurationError("no benchmark is named: --list shows all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns 1 where something failed, 2 where the line cannot be done."""
    return status_of("benchmark", lambda: _main(argv))


if __name__ == "__main__":
    raise SystemExit(main())
