"""From the scores of runs to one number, in the ways that published tables use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

__all__ = ["EVALUATIONS", "PROTOCOLS", "Protocol"]

Scores = Mapping[str, float]
"""Metric → value of one run."""

EVALUATIONS = {
    "last": "after the last step",
    "best": "at each run's best evaluation, which is chosen on the set it is reported on",
}
"""The evaluation of a run that counts, and its meaning."""


def _mean(scores: Sequence[Scores], primary: str) -> Scores:
    return {metric: fmean(s[metric] for s in scores) for metric in scores[0]}


def _best(scores: Sequence[Scores], primary: str) -> Scores:
    return max(scores, key=lambda s: s[primary])


def _median(scores: Sequence[Scores], primary: str) -> Scores:
    ordered = sorted(scores, key=lambda s: s[primary])
    return _mean(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1], primary)


@dataclass(frozen=True)
class Protocol:
    """How the runs of a setting become one number.

    Attributes:
        meaning: The number's meaning, in words.
        within: Several runs of one seed → one run.
        over: One run per seed → the number.
        drops: Options that do not distinguish settings, because `within` chooses among their values.
        used_by: The work whose published numbers were made this way; empty for none.
    """

    meaning: str
    within: Callable[[Sequence[Scores], str], Scores]
    over: Callable[[Sequence[Scores], str], Scores]
    drops: tuple[str, ...] = ()
    used_by: str = ""


PROTOCOLS = {
    "mean": Protocol("mean over seeds", _mean, _mean),
    "median": Protocol(
        "the seed with the median primary metric, all its metrics",
        _mean,
        _median,
        used_by="AGNI, of five seeds",
    ),
    "best-lr": Protocol(
        "each seed's best learning rate, chosen on the dev set, then the mean over seeds",
        _best,
        _mean,
        drops=("optimizer.lr",),
        used_by="GACT",
    ),
    "best": Protocol(
        "the best run: the more runs, the higher; compare only settings with equally many, and expect less "
        "of a new run",
        _best,
        _best,
    ),
}
"""Name on the command line → the protocol."""
