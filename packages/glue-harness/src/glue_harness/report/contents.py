"""The content of a report, before it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_common.aliases import JsonObject
from finetune_common.errors import ConfigurationError, check_number
from glue_harness.report.aggregate import Row, summarise
from glue_harness.report.averages import Average, averages
from glue_harness.report.compare import Comparison, against_best, compare
from glue_harness.report.select import flatten, parse_condition, select

__all__ = ["Contents", "gather"]


@dataclass(frozen=True)
class Contents:
    """Everything that tables, charts and the page show.

    Attributes:
        results: The runs, each with its `folder`.
        rows: Their settings.
        marks: Position of a row → `best`, or whether its seeds distinguish it from the best, in words.
        comparisons: Settings against the baseline; none without one.
        averaged: Averages over all tasks, for settings that ran all of them.
        protocol: How the runs of a setting became one number.
        evaluation: The evaluation that counts, `last` or `best`.
        test: The test of differences.
        margin: Smallest difference that matters; None if not given.
    """

    results: Sequence[JsonObject]
    rows: Sequence[Row]
    marks: Mapping[int, str]
    comparisons: Sequence[Comparison]
    averaged: Sequence[Average]
    protocol: str
    evaluation: str
    test: str
    margin: float | None = None


def gather(
    results: Sequence[JsonObject],
    *,
    protocol: str = "mean",
    evaluation: str = "last",
    test: str = "permutation",
    baseline: str | None = None,
    margin: float | None = None,
    primary: str | None = None,
    where: str | None = None,
    group_by: Sequence[str] = (),
) -> Contents:
    """Select, aggregate and compare.

    Args:
        results: From `read_results`.
        protocol: `mean`, `median`, `best-lr` or `best`.
        evaluation: `last` or `best`.
        test: `permutation` or `wilcoxon`.
        baseline: Condition that selects one setting for each task, e.g. `optimizer=adamw`.
        margin: Smallest difference that matters, in the unit of the metric.
        primary: Condition that selects the comparisons named before the runs.
        where: Condition that selects runs.
        group_by: Options that define a setting, instead of all but the seed.

    Raises:
        ConfigurationError: A condition or option that no run has, a baseline that is not one setting, or a
            margin that is not above 0.
    """
    if where:
        chosen = select("--where", parse_condition("--where", where), [flatten(r) for r in results])
        results = [results[number] for number in chosen]
    rows = summarise(results, protocol, group_by, evaluation)
    condition = parse_condition("--baseline", baseline) if baseline else None
    if condition is None and (margin is not None or primary is not None):
        given = "--primary" if margin is None else "--margin"
        raise ConfigurationError(f"{given}: there is nothing to compare with: give --baseline too")
    if margin is not None:
        check_number("--margin", margin, above=0)
    named = parse_condition("--primary", primary) if primary else None
    return Contents(
        results=results,
        rows=rows,
        marks=against_best(rows, evaluation, test),
        comparisons=compare(rows, condition, evaluation, test, margin, named) if condition else [],
        averaged=averages(rows, evaluation),
        protocol=protocol,
        evaluation=evaluation,
        test=test,
        margin=margin,
    )
