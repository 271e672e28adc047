"""The first table of the findings: made from committed results, corrected over all that was planned."""

import json

import numpy as np
import pytest
import scipy.stats

import claims

WORDS = ("better", "worse", "equal within", "undecided")


def test_the_committed_table_is_made_from_the_committed_results() -> None:
    assert claims.PAGE.read_text(encoding="utf-8") == claims.table(claims.claims())


def test_one_comparison_a_claim_paired_over_eight_seeds() -> None:
    for claim in claims.claims():
        assert claim.found.pairs == 8
        assert claim.verdict.startswith(WORDS)


def test_p_values_are_those_of_scipy_times_holms_factor() -> None:
    """Recomputed from the runs' scores alone: the exact paired test and two one-sided t-tests."""
    written = claims.planned()
    raw = []
    for claim in claims.claims():
        results = json.loads((claims.BENCHMARKS / claim.said["results"]).read_text(encoding="utf-8"))
        scores: dict[str, dict[int, float]] = {}
        for result in results:
            key = json.dumps(result["slots"], sort_keys=True)
            scores.setdefault(key, {})[result["seed"]] = result["metrics"]["last"]["accuracy"]
        means = {round(float(np.mean(list(own.values()))), 9): own for own in scores.values()}
        rows = claim.found.row, claim.found.baseline
        ours, theirs = (means[round(row.score("last")[0], 9)] for row in rows)
        differences = np.array([ours[seed] - theirs[seed] for seed in sorted(ours)])
        rows_apart = np.round(10_000 * differences)  # whole numbers: equal means are then equal
        test = scipy.stats.permutation_test(
            (rows_apart,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
        )
        assert claim.found.p == pytest.approx(test.pvalue)
        above = scipy.stats.ttest_1samp(differences, -written["margin"], alternative="greater").pvalue
        below = scipy.stats.ttest_1samp(differences, written["margin"], alternative="less").pvalue
        assert claim.found.equal == pytest.approx(np.nan_to_num(max(above, below)))
        raw.append(claim.found.p)
        assert claim.different >= claim.found.p
    smallest = min(raw, default=1.0)
    corrected = min((claim.different for claim in claims.claims()), default=1.0)
    assert corrected == pytest.approx(min(1.0, len(written["comparisons"]) * smallest))
