"""Published numbers: a csv file, each row with the run that would produce it."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from finetune_common.aliases import Settings
from finetune_common.errors import ConfigurationError, did_you_mean, shown
from glue_harness.config.matching import nested
from glue_harness.config.specification import load_yaml

__all__ = ["Target", "read_targets"]


@dataclass(frozen=True)
class Target:
    """A row of a file of published numbers.

    Attributes:
        table: The published table or figure.
        method: The setting, as published.
        model: The model, as published.
        task: The task, as published.
        layer: The layer, if the figure has an axis of layers.
        metric: The metric, as published.
        value: The number; None if unknown.
        reading: Error of reading the number off a figure.
        source: Where it was published.
        verified: Whether it was checked there.
        benchmark: Which of several sweeps would produce it; empty if there is only one.
        run: Settings of the run that would produce it.
        key: Our metric.
        times: Factor from our unit to the published one.
        note: Why it is not judged; empty if it is.
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
    run: Settings
    key: str
    times: float
    note: str


REQUIRED = ("method", "task", "metric", "value", "run", "key")
OPTIONAL = ("table", "model", "layer", "reading", "source", "verified", "benchmark", "times", "note")


def read_targets(path: Path) -> tuple[Target, ...]:
    """Read published numbers.

    Args:
        path: A csv file with the columns method, task, metric, value, run (settings, as YAML) and key (our
            metric), and any of table, model, layer, reading, source, verified, benchmark, times and note.

    Raises:
        ConfigurationError: Names the file, and the line or the column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--targets {path}: cannot be read ({error}): give a csv file") from None
    columns = reader.fieldnames or ()
    for name in REQUIRED:
        if name not in columns:
            raise ConfigurationError(f"--targets {path}: no column {name!r}: {did_you_mean(name, columns)}")
    targets = []
    for number, row in enumerate(rows, 2):
        try:
            if None in row or None in row.values():
                raise ValueError(f"it has another number of cells than the {len(columns)} columns")
            targets.append(_target({**dict.fromkeys(OPTIONAL, ""), **row}))
        except (ValueError, TypeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise ConfigurationError(f"--targets {path}: line {number}: {reason}") from None
    return tuple(targets)


def _target(row: Mapping[str, str]) -> Target:
    run = load_yaml(row["run"] or "{}") or {}
    verified = load_yaml(row["verified"] or "true")
    if not isinstance(verified, bool):
        raise ValueError(f"verified={shown(row['verified'])}: give true or false")
    if not isinstance(run, dict):
        raise ValueError(f"run {shown(row['run'])} is no mapping: give {{model: …, optimizer: {{lr: …}}}}")
    return Target(
        **{key: row[key] for key in ("table", "method", "model", "task", "layer", "metric", "source")},
        value=float(row["value"]) if row["value"] else None,
        reading=float(row["reading"] or 0),
        verified=verified,
        benchmark=row["benchmark"],
        run=nested(run),
        key=row["key"],
        times=float(row["times"] or 1),
        note=row["note"],
    )
