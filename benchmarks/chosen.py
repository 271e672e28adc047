"""Write the specification of the runs that are scored: each method as its best trial had it.

    python benchmarks/chosen.py benchmarks/sage/sst2-trials.yaml runs/sage-trials benchmarks/sage/sst2.yaml
    python benchmarks/chosen.py TRIALS.yaml RUNS SPEC.yaml --also '{activation: {name: compress, level: L1}}'

Trials are of one method where they differ in numbers alone. The best is that with the highest primary metric
on the rows held out for choosing, the first of equal ones. What `--also` gives is run beside the first
method, with its settings.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import SLOTS
from glue_harness.run.records import read_results, write_whole
from reproduce.scales import points, read, settings

__all__ = ["SEEDS", "best_trials", "same_method", "scored"]

SEEDS = [41, 42, 43, 44, 45, 46, 47, 48]
"""The seeds of what is scored; trials have another one."""

SCORED_ON = ["score", "validation"]

Point = dict[str, Any]


def _settings_of(point: Point) -> dict[str, Any]:
    """Return the options of a run's methods, each by its slot and name."""
    options = {}
    for slot in SLOTS:
        several = point.get(slot) or []
        for place, chosen in enumerate(several if isinstance(several, list) else [several]):
            options |= {f"{slot}.{place}.{key}": value for key, value in dict(chosen).items()}
    return options


def same_method(one: Point, other: Point) -> bool:
    """Say whether two trials are of one method: they name the same and differ in numbers alone.

    A number that only one of them gives is a default of the other; where both give one that the other has
    not, they are two methods.
    """
    options, other_options = _settings_of(one), _settings_of(other)

    def named(settings: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in settings.items()
            if isinstance(value, bool) or not isinstance(value, int | float)
        }

    nested = options.keys() <= other_options.keys() or other_options.keys() <= options.keys()
    return nested and named(options) == named(other_options)


def _is_of(result: dict[str, Any], point: Point) -> bool:
    """Say whether a result is of a run with these options."""
    whole = settings(point)
    run_settings = {**result["settings"], **result["slots"]}
    places = ("model", "data_dir", "monitor")
    return all(run_settings.get(key, value) == value for key, value in whole.items() if key not in places)


def best_trials(spec: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the options of each method's best trial, in the order of the specification.

    Raises:
        ConfigurationError: A trial that was not run.
    """
    best: list[tuple[float, Point]] = []
    base = spec["base"]
    for point in points(spec):
        matching = [result for result in results if _is_of(result, point)]
        options = {key: value for key, value in point.items() if base.get(key) != value}
        if len(matching) != 1:
            raise ConfigurationError(
                f"{options}: {len(matching)} results for this trial: run the trials first"
            )
        score = matching[0]["metrics"]["last"][matching[0]["primary"]]
        place = next((n for n, (_, first) in enumerate(best) if same_method(first, options)), None)
        if place is None:
            best.append((score, options))
        elif score > best[place][0]:
            best[place] = score, options
    return [point for _, point in best]


def scored(
    spec: dict[str, Any],
    results: Sequence[dict[str, Any]],
    also: Sequence[Point] = (),
    seeds: int = len(SEEDS),
) -> dict[str, Any]:
    """Return the specification of what is scored.

    Args:
        spec: Of the trials.
        results: Theirs.
        also: What is added to the first method, a case each.
        seeds: How many of `SEEDS`.
    """
    cases = best_trials(spec, results)
    cases[1:1] = [{**cases[0], **more} for more in also]
    base = {key: value for key, value in spec["base"].items() if key != "seed"}
    return {
        "base": base | {"evaluate_on": SCORED_ON},
        "keep": "none",
        "grid": {"seed": SEEDS[:seeds]},
        "cases": cases,
    }


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("trials", type=Path, help="specification of the trials")
    parser.add_argument("runs", type=Path, help="folder of their sweep, or the JSON file that keeps it")
    parser.add_argument("spec", type=Path, help="specification to write")
    parser.add_argument("--also", type=yaml.safe_load, action="append", default=[], metavar="YAML")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"runs a method ({len(SEEDS)})")
    options = parser.parse_args()
    results = (
        json.loads(options.runs.read_text("utf-8")) if options.runs.is_file() else read_results(options.runs)
    )
    made = scored(read(options.trials), results, options.also, options.seeds)
    title = f"# Each method as the best of its trials had it; made by chosen.py from {options.trials.name}.\n"
    written = yaml.safe_dump(made, sort_keys=False, width=110, default_flow_style=None)
    write_whole(options.spec, title + written)


if __name__ == "__main__":
    main()
