"""The first table of the findings: made from committed results, corrected over all that was planned."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
import yaml

import claims

WORDS = ("better", "worse", "equal within", "undecided")


def test_the_committed_table_is_made_from_the_committed_results() -> None:
    assert claims.PAGE.read_text(encoding="utf-8") == claims.table(claims.claims())


def test_one_comparison_a_claim_paired_over_every_seed_of_its_specification() -> None:
    for claim in claims.claims():
        results = claims.BENCHMARKS / claim.entry["results"]
        spec = (results.parents[1] / results.name).with_suffix(".yaml")
        seeds = yaml.safe_load(spec.read_text(encoding="utf-8"))["grid"]["seed"]
        assert claim.comparison.pairs == len(seeds) == len(set(seeds)) >= 8
        assert claim.verdict.startswith(WORDS)


def sign_flips(differences: Sequence[int]) -> float:
    """Return the share of the 2^n choices of signs whose sum is as far from 0, by counting sums."""
    ways = Counter({0: 1})
    for difference in differences:
        flipped: Counter[int] = Counter()
        for total, count in ways.items():
            flipped[total + difference] += count
            flipped[total - difference] += count
        ways = flipped
    seen = abs(sum(differences))
    return sum(count for total, count in ways.items() if abs(total) >= seen) / 2 ** len(differences)


def test_p_values_are_those_of_scipy_times_holms_factor() -> None:
    """Recomputed from the runs' scores alone: the exact paired test and two one-sided t-tests."""
    written = claims.planned()
    raw = []
    for claim in claims.claims():
        results = json.loads((claims.BENCHMARKS / claim.entry["results"]).read_text(encoding="utf-8"))
        scores: dict[str, dict[int, float]] = {}
        for result in results:
            key = json.dumps(result["slots"], sort_keys=True)
            scores.setdefault(key, {})[result["seed"]] = result["metrics"]["last"]["accuracy"]
        means = {round(float(np.mean(list(own.values()))), 9): own for own in scores.values()}
        rows = claim.comparison.row, claim.comparison.baseline
        ours, theirs = (means[round(row.score("last")[0], 9)] for row in rows)
        differences = np.array([ours[seed] - theirs[seed] for seed in sorted(ours)])
        rows_apart = np.round(10_000 * differences)  # whole numbers: equal means are then equal
        exact = sign_flips([int(apart) for apart in rows_apart])
        drawn = len(rows_apart) > 16  # too many to go through: 9,999 are drawn
        assert claim.comparison.p == pytest.approx(
            exact, abs=4 * (exact / 9_999) ** 0.5 + 1e-4 if drawn else 1e-12
        )
        above = scipy.stats.ttest_1samp(differences, -written["margin"], alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(differences, written["margin"], alternative="less").pvalue
        exact_equal = 2.0 ** -len(differences)  # where all are equal t is not defined
        equal = max(above, below) if len(set(rows_apart)) > 1 else exact_equal
        assert claim.comparison.equal == pytest.approx(equal)
        raw.append(claim.comparison.p)
        assert claim.different >= claim.comparison.p
    smallest = min(raw, default=1.0)
    corrected = min((claim.different for claim in claims.claims()), default=1.0)
    looks = len(written["comparisons"]) + sum("first" in entry for entry in written["comparisons"])
    assert corrected == pytest.approx(min(1.0, looks * smallest))


def test_first_seeds_count_in_the_correction_and_are_others() -> None:
    """Fresh seeds after a first look are a second chance: both are tests, of the same settings."""
    for entry in claims.planned()["comparisons"]:
        if "first" in entry:
            runs = [
                json.loads((claims.BENCHMARKS / entry[which]).read_text(encoding="utf-8"))
                for which in ("first", "results")
            ]
            seeds, settings = (
                [{json.dumps(run[key], sort_keys=True) for run in each} for each in runs]
                for key in ("seed", "slots")
            )
            assert not seeds[0] & seeds[1]
            assert settings[0] == settings[1]
    assert "over 9 tests: the 6 primary comparisons" in claims.table(claims.claims())


def test_a_claim_without_its_runs_is_left_out_and_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    written = claims.planned()
    before = claims.claims()
    lost = {**written["comparisons"][0], "results": "sage/results/not-run.json"}
    changed = {**written, "comparisons": [lost, *written["comparisons"][1:]]}
    monkeypatch.setattr(claims, "planned", lambda: changed)
    after = claims.claims()
    assert [claim.entry for claim in after] == [claim.entry for claim in before[1:]]
    # LoRA's p-value is the smallest: it is multiplied by the tests, of which the first seeds of one are lost
    assert after[-1].different == pytest.approx(before[-1].different * 8 / 9)
