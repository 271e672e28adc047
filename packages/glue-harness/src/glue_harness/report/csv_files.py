"""A report's tables for programs: csv files with full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from finetune_common.aliases import JsonObject
from glue_harness.report.contents import Contents

__all__ = ["csv_of"]


def csv_of(table: str, contents: Contents) -> str:
    """Return a table of a report as the text of a csv file, every number with all its digits.

    Args:
        table: "summary", "comparison" or "averages".
        contents: The report.
    """
    lines: Sequence[JsonObject] = LINES[table](contents)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _summary_lines(contents: Contents) -> list[JsonObject]:
    return [
        {
            "task": row.task,
            "model": row.model,
            "setting": row.setting,
            "seeds": " ".join(map(str, row.seeds)),
            "metric": metric,
            "mean": mean,
            "sd": spread,
            "best_mean": row.best[metric][0],
            "best_sd": row.best[metric][1],
            "mark": contents.marks.get(number, ""),
            "examples_per_second": row.examples_per_second,
            "peak_memory_bytes": row.peak_memory_bytes,
            "trainable_parameters": row.trainable,
            "runs": " ".join(row.runs),
        }
        for number, row in enumerate(contents.rows)
        for metric, (mean, spread) in row.metrics.items()
    ]


def _comparison_lines(contents: Contents) -> list[JsonObject]:
    return [
        {
            "task": c.row.task,
            "model": c.row.model,
            "setting": c.row.setting,
            "baseline": c.baseline.setting,
            "metric": c.row.primary,
            "pairs": c.pairs,
            "difference": c.difference,
            "low": c.interval and c.interval[0],
            "high": c.interval and c.interval[1],
            "p": c.p,
            "p_holm": c.corrected,
            "p_equal_holm": c.equal,
            "probability_of_improvement": c.improvement,
            "verdict": c.verdict,
            "primary": c.primary,
        }
        for c in contents.comparisons
    ]


def _average_lines(contents: Contents) -> list[JsonObject]:
    return [
        {"model": a.model, "setting": a.setting, "glue_average": a.glue, "mean_of_eleven": a.eleven}
        for a in contents.averaged
    ]


LINES = {"summary": _summary_lines, "comparison": _comparison_lines, "averages": _average_lines}
