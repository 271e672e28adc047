"""Write the specification of the runs that are scored: each method as its best trial had it.

    python benchmarks/chosen.py benchmarks/sage/sst2-trials.yaml runs/sage-trials benchmarks/sage/sst2.yaml
    python benchmarks/chosen.py TRIALS.yaml RUNS SPEC.yaml --also '{activation: {name: compress, level: L1}}'

Trials are of one method where they differ in numbers alone. The best is that with the highest primary metric
on the rows held out for choosing, the first of equal ones. Where it has the smallest or the largest number
that was tried of an option, the specification says so: a better one may lie beyond. What `--also` gives is
run beside the first method, with its settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from finetune_common.errors import ConfigurationError
from glue_harness.config.fields import SLOTS
from glue_harness.config.hold_out import read_hold_out
from glue_harness.run.records import write_whole
from reproduce.commands import status_of
from reproduce.scales import points, read, results_of, settings

__all__ = ["SEEDS", "at_an_end", "best_trials", "same_method", "scored"]

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
            method = {"name": chosen} if isinstance(chosen, str) else dict(chosen)
            options |= {f"{slot}.{place}.{key}": value for key, value in method.items()}
    return options


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same_method(one: Point, other: Point) -> bool:
    """Say whether two trials are of one method: they name the same and differ in numbers alone.

    A number that only one of them gives is a default of the other; where both give one that the other has
    not, they are two methods. Layers count as numbers where both give a list of them.
    """
    options, other_options = _settings_of(one), _settings_of(other)

    def may_differ(value: object, other_value: object) -> bool:
        if isinstance(value, list) and isinstance(other_value, list):
            return all(map(_is_number, [*value, *other_value]))
        return all(given is None or _is_number(given) for given in (value, other_value))

    nested = options.keys() <= other_options.keys() or other_options.keys() <= options.keys()
    pairs = ((options.get(key), other_options.get(key)) for key in options.keys() | other_options.keys())
    return nested and all(
        value == other_value or may_differ(value, other_value) for value, other_value in pairs
    )


def _is_of(result: dict[str, Any], point: Point) -> bool:
    """Say whether a result is of a run with these options."""
    whole = settings(point)
    run_settings = {**result["settings"], **result["slots"]}
    places = ("model", "data_dir", "monitor")
    return all(run_settings.get(key, value) == value for key, value in whole.items() if key not in places)


def _own(spec: dict[str, Any], point: Point) -> Point:
    """Return the options of a trial that are not those of all."""
    base = spec.get("base") or {}
    return {key: value for key, value in point.items() if base.get(key) != value}


def _score(results: Sequence[dict[str, Any]], point: Point, options: Point) -> float:
    matching = [result for result in results if _is_of(result, point)]
    if not matching:
        raise ConfigurationError(f"{options}: no result for this trial: run the trials first, to their end")
    if len(matching) > 1:
        raise ConfigurationError(
            f"{options}: {len(matching)} results for this trial: give the folder of one sweep"
        )
    score = matching[0]["metrics"]["last"][matching[0]["primary"]]
    if not isfinite(score):
        raise ConfigurationError(
            f"{options}: {matching[0]['primary']} is {score}: nothing can be chosen by it"
        )
    return score


def best_trials(spec: dict[str, Any], results: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the options of each method's best trial, in the order of the specification.

    Raises:
        ConfigurationError: A trial that was not run, or was run twice.
    """
    best: list[tuple[float, Point]] = []
    for point in points(spec):
        options = _own(spec, point)
        score = _score(results, point, options)
        place = next((n for n, (_, first) in enumerate(best) if same_method(first, options)), None)
        if place is None:
            best.append((score, options))
        elif score > best[place][0]:
            best[place] = score, options
    return [point for _, point in best]


def _numbers(spec: dict[str, Any], options: Point) -> dict[str, float]:
    """Return the numbers among a trial's options by name, those it leaves at their defaults included.

    A single layer is its number.
    """
    whole = settings({**(spec.get("base") or {}), **options})
    named = {
        key.replace(".0.", "."): value[0] if isinstance(value, list) and len(value) == 1 else value
        for key, value in {**whole, **_settings_of(whole)}.items()
    }
    return {key: value for key, value in named.items() if _is_number(value)}


def at_an_end(spec: dict[str, Any], best: Sequence[Point]) -> Iterator[str]:
    """Yield, in words, each number of a best trial that is the smallest or largest of its method's trials.

    Args:
        spec: Of the trials.
        best: From `best_trials`.
    """
    trials = [_own(spec, point) for point in points(spec)]
    for chosen in best:
        tried = [_numbers(spec, trial) for trial in trials if same_method(chosen, trial)]
        for name, value in _numbers(spec, chosen).items():
            values = sorted({numbers[name] for numbers in tried if name in numbers})
            if len(values) > 1 and value in (values[0], values[-1]):
                end = "smallest" if value == values[0] else "largest"
                yield f"{name} {value:g} is the {end} of {', '.join(f'{other:g}' for other in values)}"


def _check_fair(spec: dict[str, Any]) -> None:
    """Refuse trials whose best would be a lucky one: judged on rows that count later, or of several seeds."""
    base = spec.get("base") or {}
    parts, judges = read_hold_out(base.get("hold_out"), base.get("evaluate_on"))
    if judges is None or judges[0] in SCORED_ON or not {judges[0], SCORED_ON[0]} <= (parts or {}).keys():
        raise ConfigurationError(
            f"the trials are judged on {', '.join(judges or ['validation'])}: give base.hold_out "
            f"{{choose: 5000, {SCORED_ON[0]}: 10000}} and evaluate_on [choose]"
        )
    if len(seeds := {point.get("seed") for point in points(spec)}) > 1:
        raise ConfigurationError(
            f"the trials have {len(seeds)} seeds: give one, so that the best of them is no lucky one"
        )


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

    Raises:
        ConfigurationError: A trial that was not run, trials that had several seeds or were judged on rows
            that are not only for choosing, or more seeds than there are.
    """
    _check_fair(spec)
    base = {key: value for key, value in (spec.get("base") or {}).items() if key != "seed"}
    if not 1 <= seeds <= len(SEEDS):
        raise ConfigurationError(f"--seeds {seeds}: give 1 to {len(SEEDS)}")
    cases = best_trials(spec, results)
    cases[1:1] = [{**cases[0], **more} for more in also]
    return {
        "base": base | {"evaluate_on": SCORED_ON},
        "keep": "none",
        "grid": {"seed": SEEDS[:seeds]},
        "cases": cases,
    }


def _options(text: str) -> Point:
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError:
        given = None
    if not isinstance(given, dict):
        raise argparse.ArgumentTypeError(f"{text!r} gives no options: write e.g. '{{weight_decay: 0.1}}'")
    return given


def main(argv: Sequence[str] | None = None) -> bool:
    """Write the specification that a command line asks for."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("trials", type=Path, help="specification of the trials")
    parser.add_argument("runs", type=Path, help="folder of their sweep, or the JSON file that keeps it")
    parser.add_argument("spec", type=Path, help="specification to write")
    parser.add_argument("--also", type=_options, action="append", default=[], metavar="YAML")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"runs a method ({len(SEEDS)})")
    options = parser.parse_args(argv)
    trials, results = read(options.trials), results_of(options.runs)
    made = scored(trials, results, options.also, options.seeds)
    ends = list(at_an_end(trials, best_trials(trials, results)))
    title = [
        f"Each method as the best of its trials had it; made by chosen.py from {options.trials.name}.",
        *ends,
    ]
    written = yaml.safe_dump(made, sort_keys=False, width=110, default_flow_style=None)
    write_whole(options.spec, "".join(f"# {line}\n" for line in title) + written)
    for end in ends:
        print(f"at the end of its grid: {end}", file=sys.stderr)
    return True


if __name__ == "__main__":
    raise SystemExit(status_of("chosen", main))
