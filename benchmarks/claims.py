"""The primary comparison of each work, corrected together: what the findings begin with.

    python benchmarks/claims.py                # make claims.md anew from the committed results

`claims.yaml` names them. One without results of its runs and of the trials before them is left out, and
counts in the correction as one that shows nothing: what is told first is not easier to tell. A comparison
that was repeated on fresh seeds, because the first ones had left it undecided, counts twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from glue_harness.report.compare import ALPHA, Comparison
from glue_harness.report.contents import gather
from glue_harness.report.equivalence import verdict_of
from glue_harness.report.select import flatten, parse_condition, select
from glue_harness.report.statistics import holm, mean_interval
from glue_harness.run.records import write_whole

__all__ = ["Claim", "claims", "planned", "table"]

BENCHMARKS = Path(__file__).parent

PAGE = BENCHMARKS / "claims.md"


@dataclass(frozen=True)
class Claim:
    """A primary comparison and what came out.

    Attributes:
        entry: Its entry in `claims.yaml`.
        comparison: The comparison by itself, uncorrected.
        official: Mean difference on the official dev set and its interval.
        different: p-value of "no difference", corrected over all primary comparisons.
        equal: p-value of "a difference of the margin or more", corrected alike.
        verdict: What may be said.
    """

    entry: Mapping[str, str]
    comparison: Comparison
    official: tuple[float, tuple[float, float] | None]
    different: float
    equal: float
    verdict: str


def planned() -> dict[str, Any]:
    """Return what `claims.yaml` says."""
    return yaml.safe_load((BENCHMARKS / "claims.yaml").read_text(encoding="utf-8"))


def _comparison(entry: Mapping[str, str], results: Sequence[dict[str, Any]], margin: float) -> Comparison:
    """Return the one comparison of a setting with its baseline."""
    contents = gather(results, baseline=entry["baseline"], margin=margin, primary=entry["setting"])
    (primary,) = [comparison for comparison in contents.comparisons if comparison.primary]
    return primary


def _official(entry: Mapping[str, str], results: Sequence[dict[str, Any]]) -> list[float]:
    """Return the difference on the official dev set for every seed that both have."""
    flat = [flatten(result) for result in results]
    scores, baseline_scores = (
        {
            results[n]["seed"]: results[n]["beside"]["validation"][results[n]["primary"]]
            for n in select(f"--{which}", parse_condition(f"--{which}", entry[which]), flat)
        }
        for which in ("setting", "baseline")
    )
    return [scores[seed] - baseline_scores[seed] for seed in scores if seed in baseline_scores]


def _was_run(entry: Mapping[str, str]) -> bool:
    runs = BENCHMARKS / entry["results"]
    return runs.exists() and runs.with_name(f"{runs.stem}-trials.json").exists()


def _read(file: str) -> list[dict[str, Any]]:
    return json.loads((BENCHMARKS / file).read_text(encoding="utf-8"))


def claims() -> list[Claim]:
    """Return the primary comparisons that were run, in the order in which they are named."""
    written = planned()
    margin, every = written["margin"], written["comparisons"]
    there = [entry for entry in every if _was_run(entry)]
    results = [_read(entry["results"]) for entry in there]
    comparisons = [_comparison(entry, runs, margin) for entry, runs in zip(there, results, strict=True)]
    first = [_comparison(entry, _read(entry["first"]), margin) for entry in there if "first" in entry]
    nothing = [1.0] * (len(every) - len(comparisons))
    tests = [*comparisons, *first]
    different, equal = (holm([*p, *nothing]) for p in ([c.p for c in tests], [c.equal for c in tests]))
    made = []
    for number, (entry, runs, comparison) in enumerate(zip(there, results, comparisons, strict=True)):
        dev = _official(entry, runs)
        verdict = verdict_of(comparison.difference, different[number], equal[number], margin, ALPHA)
        official = (sum(dev) / len(dev), mean_interval(dev))
        made.append(Claim(entry, comparison, official, different[number], equal[number], verdict))
    return made


def _points(mean: float | None, interval: tuple[float, float] | None) -> str:
    """Return a difference in points of accuracy."""
    if mean is None or interval is None:
        return ""
    return f"{100 * mean:+.2f} ({100 * interval[0]:+.2f}\u00a0to\u00a0{100 * interval[1]:+.2f})"


def table(judged: Sequence[Claim]) -> str:
    """Return the comparisons as a markdown table."""
    written = planned()
    margin, every = written["margin"], written["comparisons"]
    twice = sum("first" in claim.entry for claim in judged)
    (rows,) = {claim.comparison.row.options["hold_out.score"] for claim in judged}
    lines = [
        f"| claim | verdict here | compared, by seed | points on {rows:,} rows (95 %) | on the official dev "
        "set (95 %) | p different, equal | where to see it |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for claim in judged:
        cells = (
            claim.entry["claim"],
            f"**{claim.verdict.replace(f'{margin:g}', f'{100 * margin:g} points')}**",
            f"{claim.entry['against']}, {claim.comparison.pairs} seeds",
            _points(claim.comparison.difference, claim.comparison.interval),
            _points(*claim.official),
            f"{claim.different:.2g}, {claim.equal:.2g}",
            claim.entry["see"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Both p-values are corrected by Holm over {len(every) + twice} tests: the {len(every)} primary "
        f"comparisons, run or not, and the first seeds of the {twice} that were repeated. "
        f"Equal: two one-sided t-tests exclude a difference of {100 * margin:g} points or more; different: "
        "sign-flip test, exact up to 16 seeds.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    write_whole(PAGE, table(claims()))
    print(table(claims()))


if __name__ == "__main__":
    main()
