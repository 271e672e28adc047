"""The primary comparison of each work, corrected together: what the findings begin with.

    python benchmarks/claims.py                # make claims.md anew from the committed results

`claims.yaml` names them. One without results of its runs and of the trials before them is left out, and
counts in the correction as one that shows nothing: what is told first is not easier to tell.
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
        said: Its entry in `claims.yaml`.
        found: The comparison by itself, uncorrected.
        official: Mean difference on the official dev set and its interval.
        different: p-value of "no difference", corrected over all primary comparisons.
        equal: p-value of "a difference of the margin or more", corrected alike.
        verdict: What may be said.
    """

    said: Mapping[str, str]
    found: Comparison
    official: tuple[float, tuple[float, float] | None]
    different: float
    equal: float
    verdict: str


def planned() -> dict[str, Any]:
    """Return what `claims.yaml` says."""
    return yaml.safe_load((BENCHMARKS / "claims.yaml").read_text(encoding="utf-8"))


def _comparison(said: Mapping[str, str], results: Sequence[dict[str, Any]], margin: float) -> Comparison:
    """Return the one comparison of a setting with its baseline."""
    contents = gather(results, baseline=said["baseline"], margin=margin, primary=said["setting"])
    (found,) = [comparison for comparison in contents.comparisons if comparison.primary]
    return found


def _official(said: Mapping[str, str], results: Sequence[dict[str, Any]]) -> list[float]:
    """Return the difference on the official dev set for every seed that both have."""
    flat = [flatten(result) for result in results]
    ours, theirs = (
        {
            results[n]["seed"]: results[n]["beside"]["validation"][results[n]["primary"]]
            for n in select(f"--{which}", parse_condition(f"--{which}", said[which]), flat)
        }
        for which in ("setting", "baseline")
    )
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def claims() -> list[Claim]:
    """Return the primary comparisons that were run, in the order in which they are named."""
    written = planned()
    margin, every = written["margin"], written["comparisons"]
    there = [one for one in every if (BENCHMARKS / one["results"].replace(".json", "-trials.json")).exists()]
    results = [json.loads((BENCHMARKS / one["results"]).read_text(encoding="utf-8")) for one in there]
    run = [_comparison(one, own, margin) for one, own in zip(there, results, strict=True)]
    nothing = [1.0] * (len(every) - len(run))
    different, equal = (holm([*p, *nothing]) for p in ([c.p for c in run], [c.equal for c in run]))
    made = []
    for number, (one, own, found) in enumerate(zip(there, results, run, strict=True)):
        dev = _official(one, own)
        verdict = verdict_of(found.difference, different[number], equal[number], margin, ALPHA)
        official = (sum(dev) / len(dev), mean_interval(dev))
        made.append(Claim(one, found, official, different[number], equal[number], verdict))
    return made


def _points(mean: float | None, interval: tuple[float, float] | None) -> str:
    """Return a difference in points of accuracy."""
    if mean is None or interval is None:
        return ""
    return f"{100 * mean:+.2f} ({100 * interval[0]:+.2f} to {100 * interval[1]:+.2f})"


def table(found: Sequence[Claim]) -> str:
    """Return the comparisons as a markdown table."""
    written = planned()
    margin, every = written["margin"], len(written["comparisons"])
    lines = [
        "| claim | verdict here | compared, by seed | points on 10,000 rows (95 %) | on the official dev set "
        "(95 %) | p different, equal | where to see it |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for claim in found:
        cells = (
            claim.said["claim"],
            f"**{claim.verdict.replace(f'{margin:g}', f'{100 * margin:g} points')}**",
            f"{claim.said['against']}, {claim.found.pairs} seeds",
            _points(claim.found.difference, claim.found.interval),
            _points(*claim.official),
            f"{claim.different:.2g}, {claim.equal:.2g}",
            claim.said["see"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Both p-values are corrected by Holm over the {every} primary comparisons, run or not. "
        f"Equal: two one-sided t-tests exclude a difference of {100 * margin:g} points or more; different: "
        "sign-flip test, exact up to 16 seeds.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    write_whole(PAGE, table(claims()))
    print(table(claims()))


if __name__ == "__main__":
    main()
