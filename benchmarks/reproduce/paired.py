"""Settings of a sweep against one of them, paired by seed."""

from __future__ import annotations

from typing import Any

from glue_harness.report.contents import gather
from glue_harness.report.render import as_markdown
from glue_harness.report.tables import tables_of

__all__ = ["table"]


def table(results: list[dict[str, Any]], baseline: str, evaluation: str) -> str:
    """Return the differences to a baseline, with intervals and verdicts.

    Args:
        results: Of a sweep.
        baseline: Condition that is true of one setting, e.g. `optimizer=adamw`.
        evaluation: `last` or `best`.
    """
    drawn = tables_of(gather(results, baseline=baseline, evaluation=evaluation))["comparison"]
    return f"{drawn.title}\n\n{as_markdown(drawn)}\n{'. '.join(drawn.notes)}.\n"
