"""What a combination of methods brings and costs: score, memory and time in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from glue_harness.report.aggregate import summarise
from glue_harness.report.compare import Comparison, baselines, compare
from reproduce.measurements import TRAINING

__all__ = ["table"]

PLAIN = {"optimizer": ["adamw"], "adaptation": ["full"], "gradient": ["none"], "activation": ["none"]}


def _words(slots: Mapping[str, Any]) -> str:
    """Name the methods of a run that are not the plain ones."""
    named = [
        *[slots["adaptation"]["name"]] * (slots["adaptation"]["name"] != "full"),
        slots["optimizer"]["name"],
        *[method["name"] for method in slots["gradient"]],
        *[slots["activation"]["name"]] * (slots["activation"]["name"] != "none"),
    ]
    return " + ".join(named)


def _seconds(result: Mapping[str, Any]) -> float:
    return sum(result["seconds"].get(part, 0.0) for part in TRAINING) / max(result["steps"], 1)


def _difference(comparison: Comparison | None) -> str:
    if comparison is None:
        return "–"
    around = comparison.interval
    shown = f" ({around[0]:+.4f} to {around[1]:+.4f})" if around else ""
    return f"{comparison.difference:+.4f}{shown}"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a line a combination, each against plain AdamW on the same task.

    Args:
        results: Kept results; the plain settings are among them.
    """
    rows = summarise(results)
    by_folder = {result["folder"]: result for result in results}
    plain = {id(row): base for row, base in baselines(rows, PLAIN)}
    against = {id(found.row): found for found in compare(rows, PLAIN)}

    def cost(row: Any) -> tuple[float, float]:
        own = [by_folder[folder] for folder in row.runs]
        return (
            fmean(one["saved_activation_bytes"] for one in own),
            median(_seconds(one) for one in own),
        )

    lines = [
        "| task | methods | score | against AdamW | parameters | saved activations | a step |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        saved, seconds = cost(row)
        first = cost(plain.get(id(row), row))
        lines.append(
            f"| {row.task} | {_words(by_folder[row.runs[0]]['slots'])} | {row.score('last')[0]:.4f} "
            f"| {_difference(against.get(id(row)))} | {row.trainable:,} | {saved / 2**20:,.0f} MiB "
            f"| {1000 * seconds:.0f} ms, {seconds / first[1]:.2f}x |"
        )
    note = (
        "Score: the task's first metric, mean over seeds; in brackets the 95 % bootstrap interval of the "
        "paired difference. Saved activations are what the forward pass of a micro-batch keeps. Time "
        "counts where runs had the machine to themselves (`--jobs 1`)."
    )
    return "\n".join(lines) + f"\n\n{note}\n"
