"""What a combination of methods brings and costs: score, memory and time in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from glue_harness.report.aggregate import summarise
from glue_harness.report.compare import Comparison, baselines, compare
from glue_harness.report.select import parse_condition

__all__ = ["PLAIN", "table"]

PLAIN = "optimizer=adamw,adaptation=full,gradient=none,activation=none"
"""The setting that the others are compared with: a condition as in `glue-harness report --baseline`."""


def _words(slots: Mapping[str, Any]) -> str:
    """Name the methods of a run that are not the plain ones."""
    named = [
        *[slots["adaptation"]["name"]] * (slots["adaptation"]["name"] != "full"),
        slots["optimizer"]["name"],
        *[method["name"] for method in slots["gradient"]],
        *[slots["activation"]["name"]] * (slots["activation"]["name"] != "none"),
    ]
    return " + ".join(named)


def _setting(result: Mapping[str, Any]) -> str:
    return json.dumps([result["task"], result["slots"]], sort_keys=True)


def _step(own: float | None, plain: float | None) -> str:
    if own is None or plain is None:
        return "–"
    return f"{1000 * own:.0f} ms, {own / plain:.2f}x"


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return "–"
    around = comparison.interval
    shown = f" ({around[0]:+.4f} to {around[1]:+.4f})" if around else ""
    return f"{comparison.difference:+.4f}{shown}"


def table(results: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a line a combination, each against plain AdamW on the same task.

    Args:
        results: Kept results; the plain settings are among them.
        timed: The same settings with the seconds of a step, from `benchmarks/combined/time.py`.
    """
    rows = summarise(results)
    by_folder = {result["folder"]: result for result in results}
    condition = parse_condition("costs", PLAIN)
    plain = {id(row): base for row, base in baselines(rows, condition)}
    against = {id(found.row): found for found in compare(rows, condition)}
    seconds = {_setting(row): row["seconds"]["step"] for row in timed}

    def seconds_of(row: Any) -> float | None:
        return seconds.get(_setting(by_folder[row.runs[0]]))

    lines = [
        "| task | methods | score | against AdamW | parameters | saved activations | a step |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        saved = fmean(by_folder[folder]["saved_activation_bytes"] for folder in row.runs)
        lines.append(
            f"| {row.task} | {_words(by_folder[row.runs[0]]['slots'])} | {row.score('last')[0]:.4f} "
            f"| {_difference(against.get(id(row)))} | {row.trainable:,} | {saved / 2**20:,.0f} MiB "
            f"| {_step(seconds_of(row), seconds_of(plain.get(id(row), row)))} |"
        )
    note = (
        "Score: the task's first metric, mean over seeds; in brackets the 95 % bootstrap interval of the "
        "paired difference. Saved activations are what the forward pass of a micro-batch keeps. A step: "
        "median on rows of full length, passes and optimizer."
    )
    return "\n".join(lines) + f"\n\n{note}\n"
