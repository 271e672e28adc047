"""What a combination of methods brings and costs: score, memory and time in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glue_harness.report.aggregate import methods_in_words, summarise
from glue_harness.report.compare import Comparison, baselines, compare
from glue_harness.report.notes import about_intervals
from glue_harness.report.select import parse_condition

__all__ = ["PLAIN", "table"]

PLAIN = "optimizer=adamw,adaptation=full,gradient=none,activation=none"
"""The setting that the others are compared with: a condition as in `glue-harness report --baseline`."""


def _key(result: Mapping[str, Any]) -> str:
    return json.dumps([result["task"], result["slots"]], sort_keys=True)


def _against(comparison: Comparison | None) -> str:
    """Return the difference with its interval, and the verdict: two cells."""
    if comparison is None or comparison.difference is None:
        return f"– | {comparison.verdict if comparison else '–'}"
    around = comparison.interval
    shown = f" ({around[0]:+.4f} to {around[1]:+.4f})" if around else ""
    return f"{comparison.difference:+.4f}{shown} | {comparison.verdict}"


def table(
    results: Sequence[Mapping[str, Any]],
    timed: Sequence[Mapping[str, Any]] = (),
    margin: float | None = None,
) -> str:
    """Return a line a combination, each against plain AdamW on the same task.

    Args:
        results: Kept results; the plain settings are among them.
        timed: The same settings with the seconds of a step and the bytes that it saves, from
            `benchmarks/combined/time.py`.
        margin: The smallest difference that matters; None if nothing is to be called equal.
    """
    rows, condition = summarise(results), parse_condition("costs", PLAIN)
    run_of = {row.runs: next(r for r in results if r["folder"] == row.runs[0]) for row in rows}
    plain = {row.runs: base for row, base in baselines(rows, condition)}
    comparisons = compare(rows, condition, margin=margin)
    against = {comparison.row.runs: comparison for comparison in comparisons}
    steps = {_key(step): step for step in timed}
    lines = [
        "| task | methods | score | against AdamW | verdict | parameters | saved activations | a step |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        timing, base = (steps.get(_key(run_of[one.runs]), {}) for one in (row, plain.get(row.runs, row)))
        size = timing.get("saved_bytes")
        seconds = [step["seconds"]["step"] for step in (timing, base) if step]
        step = f"{1000 * seconds[0]:.0f} ms, {seconds[0] / seconds[1]:.2f}x" if len(seconds) == 2 else "–"
        lines.append(
            f"| {row.task} | {methods_in_words(run_of[row.runs]['slots'])} | {row.score('last')[0]:.4f} "
            f"| {_against(against.get(row.runs))} | {row.trainable:,} "
            f"| {'–' if size is None else f'{size / 2**20:,.0f} MiB'} | {step} |"
        )
    equal = f"two one-sided t-tests for equal within ±{margin:g}, " if margin is not None else ""
    notes = (
        "Score: the task's first metric, mean over seeds",
        f"Against AdamW: the difference, paired by seed, in brackets the 95 % {about_intervals(comparisons)}",
        f"Verdict: two-sided permutation test, {equal}Holm over {len(comparisons)} rows",
        "Saved activations: what the forward pass of a micro-batch of full rows keeps",
        "A step: median on such rows, passes and optimizer",
    )
    return "\n".join(lines) + f"\n\n{'. '.join(notes)}.\n"
