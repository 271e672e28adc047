"""The sentences below a report's tables: how settings were compared, and what that cannot show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from glue_harness.report.aggregate import Row
from glue_harness.report.compare import ALPHA, Comparison, too_wide
from glue_harness.report.contents import Contents
from glue_harness.report.equivalence import UNDECIDED
from glue_harness.report.statistics import RESAMPLED_FROM, pairs_needed, smallest_p

__all__ = ["AGAINST_BEST", "about_best", "about_comparisons", "about_intervals"]

KINDS = {None: "rows", True: "planned", False: "exploratory"}
"""Words for comparisons that were named before the runs, and for others."""

AGAINST_BEST = "against the best"
"""The column that says whether the seeds distinguish a setting from the best of its task."""


def _too_few(seeds: int, comparisons: int = 1) -> str:
    """Say that this many seeds cannot show a difference, and how many can."""
    counted = "1 seed" if seeds == 1 else f"{seeds} seeds"
    return f"with {counted} no difference can be significant; use at least {pairs_needed(ALPHA, comparisons)}"


def about_best(rows: Sequence[Row], compared: bool) -> list[str]:
    """Say how settings were compared with the best, or that there are too few seeds for a comparison."""
    most = max(len(set(row.seeds)) for row in rows)
    if most >= pairs_needed(ALPHA):
        return [
            f"{AGAINST_BEST}: paired by seed, corrected by Holm over all pairs of settings, at {ALPHA:.0%}"
        ]
    return [] if compared else [_too_few(most)]


def about_intervals(comparisons: Sequence[Comparison]) -> str:
    """Say how the intervals of comparisons were computed."""
    kinds = {c.pairs >= RESAMPLED_FROM for c in comparisons if c.interval is not None}
    methods = " or ".join("bootstrap (BCa)" if many else "Student's t" for many in sorted(kinds or {False}))
    limit = f" from {RESAMPLED_FROM} pairs on" if len(kinds) == 2 else ""
    return f"interval of the mean difference: {methods}{limit}"


def about_comparisons(contents: Contents) -> list[str]:
    """Say how settings were compared with the baseline, and what that leaves out."""
    comparisons = contents.comparisons
    sizes = {c.primary: c.family for c in comparisons}
    over = " and ".join(
        f"{sizes[kind]} {KINDS[kind].removesuffix('s' * (sizes[kind] == 1))}"
        for kind in KINDS
        if kind in sizes
    )
    notes = [
        f"paired by seed, {contents.evaluation} evaluation; two-sided {contents.test} test, Holm over {over}",
        about_intervals(comparisons),
        "P(better): a run of the setting against one of the baseline, ties counted half",
    ]
    if contents.margin is not None:
        notes.append(
            f"equal: two one-sided t-tests exclude a difference of {contents.margin:g} or more, with Holm too"
        )
    notes += [*_wide_margins(contents), *_left_out(contents)]
    few = [c for c in comparisons if c.pairs and smallest_p(c.pairs) > ALPHA]
    for pairs in sorted({c.pairs for c in few}):
        notes.append(_too_few(pairs, max(c.family for c in few)))
    all_agree = [
        c for c in comparisons if c.pairs and c not in few and c.p <= smallest_p(c.pairs) * (1 + 1e-9)
    ]
    if beyond := [c.family for c in all_agree if c.verdict == UNDECIDED]:
        notes.append(
            f"so many comparisons need {pairs_needed(ALPHA, max(beyond))} seeds; --where selects fewer"
        )
    return notes


def _wide_margins(contents: Contents) -> Iterator[str]:
    """Name the tasks on which the margin is so wide that nothing is called equal."""
    margin, evaluation = contents.margin, contents.evaluation
    if margin is None:
        return
    wide = [c.row.task for c in contents.comparisons if too_wide(margin, c.row, c.baseline, evaluation)]
    if wide:
        yield (
            f"a margin of {margin:g} reaches down to guessing on {', '.join(dict.fromkeys(wide))}: nothing "
            "is called equal there (scores are fractions: half a point is 0.005)"
        )


def _left_out(contents: Contents) -> Iterator[str]:
    """Name seeds without a partner, and count settings that are scored by something else."""
    together: dict[tuple[int, ...], list[Row]] = {}
    for c in contents.comparisons:
        if alone := tuple(sorted(set(c.row.seeds) ^ set(c.baseline.seeds))):
            together.setdefault(alone, []).append(c.row)
    for alone, (first, *more) in together.items():
        seeds = f"seed{'s' * (len(alone) > 1)} {', '.join(map(str, alone))}"
        named = f"{first.task}, {first.setting}" + f" and {len(more)} more" * bool(more)
        yield f"{named}: {seeds} left out, in one of the two only: did a run fail?"
    tasks = {c.baseline.task for c in contents.comparisons}
    judges = {(c.baseline.task, c.baseline.judge) for c in contents.comparisons}
    others = sum(row.task in tasks and (row.task, row.judge) not in judges for row in contents.rows)
    if others:
        yield f"not compared: {others} scored by another metric or on other rows than the baseline"
