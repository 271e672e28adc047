"""Settings compared with a baseline, paired by seed; the verdict is one of four."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_common.errors import ConfigurationError
from glue_harness.report.aggregate import Row
from glue_harness.report.equivalence import UNDECIDED, equivalence_test, verdict_of
from glue_harness.report.select import Condition, select
from glue_harness.report.statistics import (
    TESTS,
    holm,
    mean_interval,
    probability_of_improvement,
    smallest_p,
)

__all__ = ["ALPHA", "BEST", "Comparison", "against_best", "baselines", "compare", "too_wide"]

ALPHA = 0.05
"""The level of every test, and 1 − ALPHA that of every interval."""

BEST = "best"
"""Mark of the best setting of a task."""


@dataclass(frozen=True)
class Comparison:
    """A setting against its baseline.

    Attributes:
        row: The setting.
        baseline: The baseline.
        pairs: Seeds that both have.
        difference: Mean over the pairs of setting − baseline, in the unit of the metric; None without a pair.
        interval: Its 95 % confidence interval; None with fewer than two pairs.
        p: Two-sided p-value, 1 without a pair.
        corrected: The same after Holm's correction over the comparisons of its family.
        equal: p-value of "the difference is the margin or more", corrected too; 1 without a margin.
        improvement: Probability that a run of the setting is better than one of the baseline.
        verdict: The conclusion (`verdict_of`).
        family: How many comparisons were corrected together.
        primary: Whether it was named beforehand; None if no comparison was.
    """

    row: Row
    baseline: Row
    pairs: int
    difference: float | None
    interval: tuple[float, float] | None
    p: float
    corrected: float
    equal: float
    improvement: float
    verdict: str
    family: int
    primary: bool | None = None


def _differences(row: Row, baseline: Row, evaluation: str) -> list[float]:
    """Return setting − baseline for every seed that both have."""
    scores, baseline_scores = row.seed_scores(evaluation), baseline.seed_scores(evaluation)
    return [scores[seed] - baseline_scores[seed] for seed in scores if seed in baseline_scores]


def _p_values(differences: Sequence[Sequence[float]], test: str) -> list[float]:
    return [TESTS[test](values) if values else 1.0 for values in differences]


def baselines(rows: Sequence[Row], condition: Condition) -> list[tuple[Row, Row]]:
    """Pair every setting with the baseline of its task, and of its model unless the condition names a model.

    Both are scored by the same metric on the same rows.

    Args:
        rows: From `summarise`.
        condition: Which rows are baselines; a setting without one is left out.

    Raises:
        ConfigurationError: It names no row, more than one for a task, or rows that nothing is scored like.
    """
    described = [{**row.options, "task": row.task, "model": row.model} for row in rows]
    chosen: dict[tuple[str, str, str], Row] = {}

    def group(row: Row) -> tuple[str, str, str]:
        return row.task, "" if "model" in condition else row.model, row.judge

    for number in select("--baseline", condition, described):
        row, key = rows[number], group(rows[number])
        if key in chosen:
            raise ConfigurationError(
                f"--baseline: both '{chosen[key].setting}' and '{row.setting}' match on {row.task}: add a "
                "condition, e.g. optimizer=adamw,optimizer.lr=2e-5"
            )
        chosen[key] = row
    pairs = [(row, chosen.get(group(row))) for row in rows]
    found = [(row, baseline) for row, baseline in pairs if baseline is not None and row is not baseline]
    if not found and any(
        row.task == task and row.judge != judge for task, _, judge in chosen for row in rows
    ):
        raise ConfigurationError(
            "--baseline: no other setting is scored by the same metric on the same rows: choose one that is"
        )
    return found


def _families(pairs: Sequence[tuple[Row, Row]], primary: Condition | None) -> list[bool | None]:
    """Say for each comparison whether it was named beforehand."""
    if primary is None:
        return [None] * len(pairs)
    described = [{**row.options, "task": row.task, "model": row.model} for row, _ in pairs]
    named = set(select("--primary", primary, described))
    return [number in named for number in range(len(pairs))]


def _holm_within(p_values: Sequence[float], families: Sequence[bool | None]) -> list[float]:
    """Return p-values corrected within each family."""
    corrected = list(p_values)
    for family in set(families):
        places = [place for place, of_place in enumerate(families) if of_place is family]
        for place, p in zip(places, holm([p_values[place] for place in places]), strict=True):
            corrected[place] = p
    return corrected


def too_wide(margin: float, row: Row, baseline: Row, evaluation: str = "last") -> bool:
    """Say whether a margin reaches from the better of two scores to that of a model that has learned nothing.

    Then "equal within the margin" would say nothing: it would hold for guessing too.
    """
    best = max(one.score(evaluation)[0] for one in (row, baseline))
    return row.floor is not None and best - row.floor <= margin


def compare(
    rows: Sequence[Row],
    condition: Condition,
    evaluation: str = "last",
    test: str = "permutation",
    margin: float | None = None,
    primary: Condition | None = None,
) -> list[Comparison]:
    """Compare every setting with the baseline of its task, by the primary metric.

    Args:
        rows: From `summarise`.
        condition: Which rows are baselines.
        evaluation: `last` or `best`.
        test: `permutation` or `wilcoxon`.
        margin: Smallest difference that matters, in the unit of the metric; without it, or where it is
            `too_wide`, nothing is called equal.
        primary: Which comparisons were named before the runs; the others are exploratory. Each kind is
            corrected separately.

    Returns:
        One comparison for each setting, in the order of the rows.

    Raises:
        ConfigurationError: A condition names no row, or the baseline's more than one for a task.
    """
    pairs = baselines(rows, condition)
    families = _families(pairs, primary)
    differences = [_differences(row, baseline, evaluation) for row, baseline in pairs]
    p_values = _p_values(differences, test)
    margins = [None if margin is None or too_wide(margin, *pair, evaluation) else margin for pair in pairs]
    equals = [
        1.0 if narrow is None or not values else equivalence_test(values, narrow)
        for values, narrow in zip(differences, margins, strict=True)
    ]
    corrected = zip(_holm_within(p_values, families), _holm_within(equals, families), strict=True)
    comparisons = []
    for number, ((row, baseline), values, (different, equal)) in enumerate(
        zip(pairs, differences, corrected, strict=True)
    ):
        mean = sum(values) / len(values) if values else None
        scores, baseline_scores = (list(r.seed_scores(evaluation).values()) for r in (row, baseline))
        comparisons.append(
            Comparison(
                row=row,
                baseline=baseline,
                pairs=len(values),
                difference=mean,
                interval=mean_interval(values, 1 - ALPHA) if values else None,
                p=p_values[number],
                corrected=different,
                equal=equal,
                improvement=probability_of_improvement(scores, baseline_scores),
                verdict=verdict_of(mean, different, equal, margins[number], ALPHA),
                family=families.count(families[number]),
                primary=families[number],
            )
        )
    return comparisons


def against_best(rows: Sequence[Row], evaluation: str = "last", test: str = "permutation") -> dict[int, str]:
    """Say for each setting whether its seeds distinguish it from the best of its task.

    The best is chosen by the scores that are then tested, so that every pair of settings might have been the
    one that is compared: Holm's correction counts all k (k - 1)/2 pairs of k settings. Over the k - 1 tests
    alone, one of eight equal settings would be called worse in one experiment of seven.

    Args:
        rows: From `summarise`.
        evaluation: `last` or `best`.
        test: `permutation` or `wilcoxon`.

    Returns:
        Position of the row → `best`, `worse (8 seeds, p = 0.01)`, or `undecided` with the same in brackets;
        only the number of seeds if they are too few for a test. A row without a seed in common with the best
        is left out: nothing was tested. Settings that are scored on other rows have a best of their own.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault((row.task, row.judge), []).append(number)
    words: dict[int, str] = {}
    for numbers in groups.values():
        best = max(numbers, key=lambda n: rows[n].score(evaluation)[0])
        others = [number for number in numbers if number != best]
        differences = [_differences(rows[n], rows[best], evaluation) for n in others]
        untested = len(others) * (len(others) - 1) // 2
        corrected = holm([*_p_values(differences, test), *[1.0] * untested])
        words[best] = BEST
        for number, values, p in zip(others, differences, corrected, strict=False):
            if values:
                words[number] = _compared_with_best(len(values), p)
    return words


def _compared_with_best(pairs: int, p: float) -> str:
    seeds = "1 seed" if pairs == 1 else f"{pairs} seeds"
    if smallest_p(pairs) > ALPHA:
        return f"{UNDECIDED}: {seeds}"
    return f"{'worse' if p <= ALPHA else UNDECIDED} ({seeds}, p = {p:.2g})"
