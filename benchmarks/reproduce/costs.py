"""What a combination of methods brings and costs: score, memory and time in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glue_harness.report.aggregate import Row, methods_in_words, summarise
from glue_harness.report.compare import Comparison, baselines, compare
from glue_harness.report.select import parse_condition
from glue_harness.report.tables import about_intervals

__all__ = ["PLAIN", "table"]

PLAIN = "optimizer=adamw,adaptation=full,gradient=none,activation=none"
"""The setting that the others are compared with: a condition as in `glue-harness report --baseline`."""


def _setting(result: Mapping[str, Any]) -> str:
    return json.dumps([result["task"], result["slots"]], sort_keys=True)


def _step(own: float | None, plain: float | None) -> str:
    if own is None or plain is None:
        return "–"
    return f"{1000 * own:.0f} ms, {own / plain:.2f}x"


def _saved(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:,.0f} MiB"


def _against(comparison: Comparison | None) -> str:
    """Return the difference with its interval, and the verdict: two cells."""
    if comparison is None or comparison.difference is None:
        return f"– | {comparison.verdict if comparison else '–'}"
    around = comparison.interval
    shown = f" ({around[0]:+.4f} to {around[1]:+.4f})" if around else ""
    return f"{comparison.difference:+.4f}{shown} | {comparison.verdict}"


def table(results: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return a line a combination, each against plain AdamW on the same task.

    Args:
        results: Kept results; the plain settings are among them.
        timed: The same settings with the seconds of a step and the bytes that it saves, from
            `benchmarks/combined/time.py`.
    """
    rows = summarise(results)
    by_folder = {result["folder"]: result for result in results}
    condition = parse_condition("costs", PLAIN)
    plain = {id(row): base for row, base in baselines(rows, condition)}
    comparisons = compare(rows, condition)
    against = {id(found.row): found for found in comparisons}
    steps = {_setting(row): (row["seconds"]["step"], row.get("saved_bytes")) for row in timed}

    def step_of(row: Row) -> tuple[float | None, int | None]:
        return steps.get(_setting(by_folder[row.runs[0]]), (None, None))

    lines = [
        "| task | methods | score | against AdamW | verdict | parameters | saved activations | a step |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds, saved = step_of(row)
        methods = methods_in_words(by_folder[row.runs[0]]["slots"])
        lines.append(
            f"| {row.task} | {methods} | {row.score('last')[0]:.4f} "
            f"| {_against(against.get(id(row)))} | {row.trainable:,} | {_saved(saved)} "
            f"| {_step(seconds, step_of(plain.get(id(row), row))[0])} |"
        )
    notes = (
        "Score: the task's first metric, mean over seeds",
        f"Against AdamW: the difference, paired by seed, in brackets the 95 % {about_intervals(comparisons)}",
        f"Verdict: two-sided permutation test, Holm over {len(comparisons)} rows",
        "Saved activations: what the forward pass of a micro-batch of full rows keeps",
        "A step: median on such rows, passes and optimizer",
    )
    return "\n".join(lines) + f"\n\n{'. '.join(notes)}.\n"
