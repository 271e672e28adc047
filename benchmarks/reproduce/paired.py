"""Settings of a sweep against one of them, paired by seed."""

from __future__ import annotations

from typing import Any

from glue_harness.report.contents import gather
from glue_harness.report.protocols import PROTOCOLS
from glue_harness.report.render import as_markdown
from glue_harness.report.tables import tables_of
from reproduce.catalogue import Benchmark

__all__ = ["table"]


def table(results: list[dict[str, Any]], benchmark: Benchmark) -> str:
    """Return the differences to a benchmark's baseline, with intervals and verdicts.

    Args:
        results: Of a sweep.
        benchmark: Says which setting is the baseline, and how runs become one number.
    """
    contents = gather(
        results,
        baseline=benchmark.baseline,
        protocol=benchmark.protocol,
        evaluation=benchmark.evaluation,
    )
    drawn = tables_of(contents)["comparison"]
    protocol = PROTOCOLS[benchmark.protocol]
    chosen = [protocol.said] * bool(protocol.drops)
    notes = [note[0].upper() + note[1:] for note in (*drawn.notes, *chosen)]
    return f"{drawn.title}\n\n{as_markdown(drawn)}\n{'. '.join(notes)}.\n"
