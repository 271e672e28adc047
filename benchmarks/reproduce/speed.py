"""Measure speed anew, and compare with the committed figures as ratios."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_common.errors import ConfigurationError
from reproduce.catalogue import BENCHMARKS
from reproduce.performing import command

__all__ = ["figures", "ratios", "speed"]

FOLDER = BENCHMARKS / "speed"

OPTIONS = {"harness": {"--data-dir": "GLUE_DATA_DIR", "--model": "MINILM_DIR"}}
"""Script → options that the environment has to give."""

FIGURES = (
    *("median_seconds", "seconds", "sweep_seconds", "ratio", "overhead"),
    *("examples_per_second", "harness_faster_by", "kernels", "ns_per_element"),
)
"""Keys under which a script writes a figure, or figures by name; repeats of a measurement are lists."""


def figures(report: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Yield the figures of a report by name.

    Examples:
        >>> dict(figures({"steps": {"L1": {"seconds": 2.0, "all_seconds": [2.0]}}, "repeats": 5}))
        {'steps, L1, seconds': 2.0}
        >>> dict(figures([{"way": "plain", "ratio": 1.0}]))
        {'plain, ratio': 1.0}
    """
    if isinstance(report, list):
        report = {entry["way"]: entry for entry in report if isinstance(entry, Mapping) and "way" in entry}
    if isinstance(report, Mapping):
        for key, value in report.items():
            yield from figures(value, (*path, str(key)))
    elif isinstance(report, int | float) and not isinstance(report, bool) and set(FIGURES) & set(path[-2:]):
        yield ", ".join(path), float(report)


def ratios(now: Any, committed: Any) -> str:
    """Return a markdown table of the figures of two reports of one script."""
    before = dict(figures(committed))
    lines = ["| figure | committed | now | now / committed |", "| --- | ---: | ---: | ---: |"]
    for name, value in figures(now):
        if before.get(name):
            lines.append(f"| {name} | {before[name]:.4g} | {value:.4g} | {value / before[name]:.2f} |")
    return "\n".join(lines) + "\n"


def _report(script: Path, output: Path) -> Any:
    """Run a script; returns its report."""
    words: list[str | Path] = ["--output", output]
    for option, variable in OPTIONS.get(script.stem, {}).items():
        if variable not in os.environ:
            raise ConfigurationError(f"it needs {variable}=DIR: give it on the line")
        words += [option, os.environ[variable]]
    output.parent.mkdir(parents=True, exist_ok=True)
    command(script, *words)
    return json.loads(output.read_text(encoding="utf-8"))


def speed(output: Path) -> bool:
    """Run every script that has committed figures, print the ratios of each; returns whether all ran.

    Figures count where nothing else keeps the machine busy; a ratio of two ways, measured in one process, is
    comparable between machines, seconds are not.
    """
    failed = False
    for committed in sorted((FOLDER / "results").glob("*.json")):
        script, before = FOLDER / f"{committed.stem}.py", json.loads(committed.read_text(encoding="utf-8"))
        if not script.exists() or not dict(figures(before)):
            continue
        try:
            now = _report(script, output / committed.name)
        except ConfigurationError as error:
            failed = True
            print(f"benchmark: error: speed/{script.name}: {error}", file=sys.stderr)
        else:
            print(f"## {script.stem}\n\n{ratios(now, before)}", flush=True)
    return not failed
